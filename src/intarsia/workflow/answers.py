"""What a task answers for each row, with the labels' names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intarsia.data import EncodedSource, Rows
from intarsia.heads import Head
from intarsia.training import Scores
from intarsia.workflow.reading import Source


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


def named(rows: Rows, head: Head, source: Source, answers: Scores) -> list[Prediction]:
    """Answers in the order of the rows (the source's plan is in order of length), with the labels' names."""
    found: list[Prediction | None] = [None] * len(rows)
    for at, (batch, place, row) in enumerate(_places(source)):
        text, answer = list(rows.texts[row]), answers.predictions[at]
        if head.kind == "generation":
            label = answer if answer in head.labels else None
            found[row] = Prediction(text=text, prediction=answer, label=label, scores=None)
            continue
        assert isinstance(source, EncodedSource)
        spots = _word_spots(source, batch, place, len(text))
        found[row] = _one(text, head.kind, head.labels, answers.scores[at], answer, spots)
    return [answer for answer in found if answer is not None]


def _places(source: Source) -> Iterator[tuple[np.ndarray, int, int]]:
    """Batch, place in the batch and row, in the order of the source's plan."""
    for batch in source.plan(0):
        for place, row in enumerate(batch):
            yield batch, place, int(row)


def _word_spots(source: EncodedSource, batch: np.ndarray, place: int, words: int) -> list[int | None]:
    """Token-classification: at which position of its padded batch row each word begins; None for a word without a token."""
    encoded = source.encoded
    if encoded.words is None:
        return []
    row = batch[place]
    own = encoded.words[encoded.offsets[row] : encoded.offsets[row + 1]]
    shift = int(encoded.lengths[batch].max()) - len(own) if source.padding_side == "left" else 0
    spots: list[int | None] = [None] * words
    for position, word in enumerate(own):
        if word >= 0:
            spots[word] = position + shift
    return spots


def _one(
    text: list[str], kind: str, labels: Sequence[str], scores: np.ndarray, answer: Any, spots: list[int | None]
) -> Prediction:
    if kind == "regression":
        return Prediction(text=text, prediction=float(answer), label=None, scores=None)
    if kind == "token-classification":
        chosen = [None if spot is None else int(answer[spot]) for spot in spots]
        sure = [None if spot is None else float(scores[spot].max()) for spot in spots]
        names = [None if index is None else labels[index] for index in chosen]
        return Prediction(text=text, prediction=chosen, label=names, scores=sure)
    by_name = {name: float(value) for name, value in zip(labels, scores, strict=True)}
    if kind == "multi-label":
        chosen = [int(index) for index in np.flatnonzero(answer)]
        return Prediction(text=text, prediction=chosen, label=[labels[i] for i in chosen], scores=by_name)
    return Prediction(text=text, prediction=int(answer), label=labels[int(answer)], scores=by_name)
