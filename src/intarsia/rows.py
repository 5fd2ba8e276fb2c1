"""One row of a task, from its texts to tokens and from its scores to an answer; as training and files of rows do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intarsia.backbone import Backbone
from intarsia.data.encoding import serialise, tokens_of
from intarsia.data.filling import fill
from intarsia.data.generation import input_room, plain_template
from intarsia.data.template import Template
from intarsia.errors import ConfigError, DataError
from intarsia.heads import Head
from intarsia.sites import Role
from intarsia.task import Task

TARGET_LENGTH = 128
"""Longest target in tokens, where nobody says another."""


def virtual(task: Task) -> int:
    """How many positions its virtual tokens take: those of a template's slots stand in the row itself."""
    prompt, taken = task.prompt, task.offset
    if prompt is not None and prompt.place != "template" and any(s.role is Role.EMBED for s in task.sites.values()):
        taken += prompt.length
    return taken


def room(task: Task, backbone: Backbone) -> int:
    """How many tokens a row may have beside the task's virtual ones."""
    return backbone.max_length - virtual(task)


def longest_input(task: Task, backbone: Backbone) -> int:
    """Most tokens of a row: the bound of its training, or what the backbone has room for."""
    return min(task.data.get("max_length", room(task, backbone)), room(task, backbone))


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The answer for one row."""

    text: list[str]
    """The text, all texts of a pair or template, or the words of a token-classification row."""
    prediction: Any
    """Class index; regression: the number; multi-label: the indices above 0.5; token-classification: an index per word,
    None for a word without a token; generation: the text."""
    label: Any
    """The name or names of `prediction`; generation: the text, if it is one of the task's legal outputs; None for
    regression, and for any other text."""
    scores: Any
    """Probability of every label by name; token-classification: of the label chosen for each word; None for regression and
    generation."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row's tokens."""

    ids: list[int]
    """Below 0: slots of a template."""
    types: list[int] | None = None
    """Token types of a pair."""
    spots: list[int | None] | None = None
    """token-classification: where each word begins; None for a word without a token."""


class Tokens:
    """A backbone's tokenizer, ready for many single rows. May be used by several threads."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.tokenizer = backbone, backbone.tokenizer
        self._serialised: dict[bool, str] = {}

    def serialised(self, words: bool) -> str:
        """As data.encoding.serialise, which takes a while."""
        if words not in self._serialised:
            self._serialised[words] = serialise(self.tokenizer, words)
        return self._serialised[words]


class RowReader:
    """How texts become a row of one task."""

    def __init__(self, task: Task, tokens: Tokens, name: str) -> None:
        """name: what callers know the task by. DataError for a task without a head, which answers nothing."""
        if task.head is None:
            raise DataError(f"task {name!r} has no head, so it answers nothing; use it with TaskBank")
        backbone = tokens.backbone
        self.name, self.kind, self.tokens = name, task.head.kind, tokens
        self.columns = tuple(task.data.get("text_columns") or ("text",))
        self.longest = longest_input(task, backbone)
        text = task.data.get("template")
        self.template = None if text is None else Template.parse(text)
        self.closed = backbone.kind == "encoder-decoder"
        if self.kind == "generation":
            target = task.data.get("target_length", min(TARGET_LENGTH, self.longest // 2))
            self.longest = input_room(self.longest, target, self.closed)
            self.template, _ = (self.template or plain_template(len(self.columns), self.closed)).split_end()

    def read(self, texts: Sequence[str]) -> Row:
        """The row of these texts, one for each column; words, for token-classification. Cut to the task's longest row. DataError
        where they are too few, too many or empty."""
        words = self.kind == "token-classification"
        if not texts or not all(text.strip() for text in texts):
            raise DataError("a text is empty; expected at least one word")
        if not words and len(texts) != len(self.columns):
            raise DataError(
                f"task {self.name!r} takes {len(self.columns)} text(s) per row ({', '.join(self.columns)}), got {len(texts)}"
            )
        serialised, tokenizer, row = self.tokens.serialised(words), self.tokens.tokenizer, [tuple(texts)]
        if self.kind == "generation":
            assert self.template is not None
            made = fill(row, self.template, tokenizer, serialised, self.longest, closed=self.closed)
        else:
            made = tokens_of(row, tokenizer, serialised, self.longest, words=words, template=self.template)
        if not len(made["ids"]):
            raise DataError("the tokenizer makes no token of this text")
        types = made.get("type_ids")
        spots = _spots(made["words"], len(texts)) if words else None
        return Row(made["ids"].tolist(), None if types is None else types.tolist(), spots)


def _spots(starts: np.ndarray, words: int) -> list[int | None]:
    spots: list[int | None] = [None] * words
    for position, word in enumerate(starts.tolist()):
        if word >= 0:
            spots[word] = position
    return spots


def join_rows(rows: Sequence[Row], *, pad_id: int, left: bool) -> dict[str, Tensor]:
    """One padded batch of rows of any tasks: input_ids and attention_mask (B, T), and token_type_ids where a row has some."""
    longest = max(len(row.ids) for row in rows)

    def padded(values: list[list[int]], fill_with: int) -> Tensor:
        spare = [[fill_with] * (longest - len(own)) for own in values]
        return torch.tensor([s + own if left else own + s for own, s in zip(values, spare, strict=True)])

    batch = {
        "input_ids": padded([row.ids for row in rows], pad_id),
        "attention_mask": padded([[1] * len(row.ids) for row in rows], 0),
    }
    if any(row.types for row in rows):
        batch["token_type_ids"] = padded([row.types or [0] * len(row.ids) for row in rows], 0)
    return batch


def decide(kind: str, logits: Tensor) -> tuple[list[np.ndarray], list[Any]]:
    """Scores and predictions of each row. logits: (B, C), or (B, T, C) for token classification; on the CPU."""
    if kind == "regression":
        values = logits.flatten().numpy()
        return [np.asarray(value) for value in values], values.tolist()
    if kind == "multi-label":
        return list(logits.sigmoid().numpy()), list((logits > 0).long().numpy())
    best = logits.argmax(-1).numpy()
    return list(logits.softmax(-1).numpy()), best.tolist() if kind == "classification" else list(best)


def answer(
    text: list[str], head: Head, scores: np.ndarray, answered: Any, spots: Sequence[int | None] | None
) -> Prediction:
    """One row's scores and prediction, with the labels' names. spots: at which position of the scores each word begins."""
    labels = head.labels
    if head.kind == "regression":
        return Prediction(text=text, prediction=float(answered), label=None, scores=None)
    if head.kind == "token-classification":
        if spots is None:
            raise ConfigError("the answers of token-classification need the places of the words")
        chosen = [None if spot is None else int(answered[spot]) for spot in spots]
        sure = [None if spot is None else float(scores[spot].max()) for spot in spots]
        names = [None if index is None else labels[index] for index in chosen]
        return Prediction(text=text, prediction=chosen, label=names, scores=sure)
    by_name = {name: float(value) for name, value in zip(labels, scores, strict=True)}
    if head.kind == "multi-label":
        chosen = [int(index) for index in np.flatnonzero(answered)]
        return Prediction(text=text, prediction=chosen, label=[labels[i] for i in chosen], scores=by_name)
    return Prediction(text=text, prediction=int(answered), label=labels[int(answered)], scores=by_name)


def answer_row(text: Sequence[str], head: Head, row: Row, logits: Tensor, *, left: bool) -> Prediction:
    """The answer of one row of a padded batch. logits: (C,), or (T, C) for token classification, on the CPU; left:
    padded there."""
    scores, found = decide(head.kind, logits[None])
    shift = len(logits) - len(row.ids) if left and row.spots is not None else 0
    spots = None if row.spots is None else [None if spot is None else spot + shift for spot in row.spots]
    return answer(list(text), head, scores[0], found[0], spots)
