"""Continuous batching over mixed tasks: texts join while others are being written, and leave when they end.

On a GPU rows have slots, and a pass is a CUDA graph (`slots`). Elsewhere, and for tasks that graphs do not know, rows that can
share a forward pass are a group with one cache. A step writes one token for every running row, and reads the prompts of those that
wait, as far as there is room. What a row gets does not depend on who else is there (`TaskBank`).
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intarsia.backbone.entrance import positions_of
from intarsia.backbone.language import end_tokens
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError
from intarsia.routing import Route
from intarsia.serving.cache import merged, merged_masks, new_cache
from intarsia.serving.sampling import Chooser
from intarsia.serving.seated import PREFILL, Seated
from intarsia.serving.text import TextStream
from intarsia.serving.writing import Emitted, Writing, keeps_rows, next_tokens

_SEATED = "seated"
"""The word of rows that have slots."""


@dataclass(slots=True)
class _Group:
    """Rows that share passes."""

    rows: list[Writing]
    cache: Any
    mask: Tensor
    """(B, T) int64"""
    last: list[int]
    """The newest token of each row, not in the cache yet."""
    route: Route


class Decoder:
    """Texts that are being written on one bank. Belongs to one thread."""

    def __init__(self, bank: TaskBank, *, max_rows: int = 64, max_tokens: int = 65536) -> None:
        """max_rows: running at once. max_tokens: rows times columns of all caches together."""
        if bank.backbone.kind != "decoder":
            raise ConfigError(f"continuous batching is for decoders, and {bank.backbone.name!r} is none")
        if not bank.backbone.attends_only:
            raise ConfigError(
                f"continuous batching keeps each text's keys and values, and {bank.backbone.name!r} has layers that keep other "
                "states; write with TaskBank.generate"
            )
        _ = bank.backbone.language_head
        self.bank, self.max_rows, self.max_tokens = bank, max_rows, max_tokens
        self.waiting: deque[Writing] = deque()
        self._groups: dict[str, _Group] = {}
        self._ends = frozenset(end_tokens(bank.backbone))
        self._seated = Seated(bank, self._ends, max_rows, max_tokens)
        takes = inspect.signature(bank.backbone.model.forward).parameters
        self._positions = "position_ids" in takes
        bank.mixes = bank.mixes and keeps_rows(bank.backbone)
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    @property
    def running(self) -> int:
        """Rows that are being written."""
        return len(self._all())

    def _all(self) -> list[Writing]:
        return [*self._seated.rows, *(row for group in self._groups.values() for row in group.rows)]

    def add(self, writing: Writing) -> None:
        """Joins at the next step that has room. ConfigError where it could never end within the backbone's positions."""
        limit, wanted = self.bank.backbone.max_length, self._columns(writing)
        writing.columns = wanted
        if wanted > limit:
            raise ConfigError(
                f"the prompt has {len(writing.prompt)} tokens and max_tokens is {writing.sampling.max_tokens}, together with what "
                f"the task adds {wanted}; the backbone has places for {limit}"
            )
        writing.text = TextStream(self.bank.backbone.tokenizer, writing.prompt, writing.sampling.stop)
        writing.chooser = Chooser(writing.sampling)
        self.waiting.append(writing)

    def cancel(self, writing: Writing) -> None:
        """It leaves, whether it waits or runs."""
        if writing in self.waiting:
            self.waiting.remove(writing)
        self._seated.leave([writing])
        for word, group in list(self._groups.items()):
            if writing in group.rows:
                self._keep(word, [row for row in group.rows if row is not writing])

    def ahead(self, names: Sequence[str]) -> Iterator[None]:
        """Makes what texts by these tasks would wait for, one thing with each step; ends where somebody writes."""
        return self._seated.ahead(names)

    def uses(self, name: str) -> bool:
        """Whether any text is written by this task."""
        return any(row.task == name for row in (*self.waiting, *self._all()))

    @torch.inference_mode()
    def step(self) -> list[Emitted]:
        """One token for every running row, and the first one for those that join; rows in slots have theirs in the next step."""
        joining: dict[str, list[Writing]] = {}

        def admit() -> list[Writing]:
            joining.update(self._admitted())
            return joining.pop(_SEATED, [])

        emitted = self._seated.step(admit)
        for word in list(self._groups):
            emitted += self._guarded(self._groups[word].rows, lambda word=word: self._step(word))
        for word, rows in joining.items():
            emitted += self._guarded(rows, lambda word=word, rows=rows: self._join(word, rows))
        return emitted

    def _word(self, writing: Writing) -> str:
        """Rows with the same word share passes."""
        return _SEATED if self._seated.takes(writing.task) else self.bank.pass_of(writing.task)

    def _guarded(self, rows: list[Writing], call: Any) -> list[Emitted]:
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - whatever it was, other groups go on
            rows = list(rows)
            for word, group in list(self._groups.items()):
                if any(row in group.rows for row in rows):
                    rows = list(dict.fromkeys([*rows, *group.rows]))  # their cache may be half written
                    del self._groups[word]
            return [Emitted(row, "", None, error) for row in rows]

    def _columns(self, writing: Writing) -> int:
        """Columns of a row at its end."""
        task = None if writing.task is None else self.bank.tasks[writing.task]
        added = 0
        if task is not None:
            added = task.offset
            if task.prompt is not None and task.prompt.place != "template":
                added += task.prompt.length
        return len(writing.prompt) + writing.sampling.max_tokens + added

    def _admitted(self) -> dict[str, list[Writing]]:
        """The first of the waiting rows that have room, by the pass that they share."""
        found: dict[str, list[Writing]] = {}
        if not self.waiting:
            return found
        running = self._all()
        longest = max((row.columns for row in running), default=0)
        while self.waiting and len(running) < self.max_rows:
            writing = self.waiting[0]
            longest = max(longest, writing.columns)
            word = self._word(writing)
            beside = [row.task for row in self._rows(word) + found.get(word, [])]
            if running and (
                longest * (len(running) + 1) > self.max_tokens or not self.bank.fits([*beside, writing.task])
            ):
                break
            running.append(self.waiting.popleft())
            found.setdefault(word, []).append(writing)
        return found

    def _rows(self, word: str) -> list[Writing]:
        if word == _SEATED:
            return self._seated.rows
        group = self._groups.get(word)
        return [] if group is None else group.rows

    def _join(self, word: str, joining: list[Writing]) -> list[Emitted]:
        """Reads the new rows' prompts in batches of their own, and puts them beside the group's."""
        emitted: list[Emitted] = []
        parts = [] if (old := self._groups.get(word)) is None else [(old, list(range(len(old.rows))))]
        for batch in _batches(joining):
            group, scores = self._prefilled(batch)
            tokens, seen = next_tokens(group.rows, scores, self._ends)
            group.last = [0 if token is None else token for token in tokens]
            emitted += seen
            if left := [row for row, token in enumerate(tokens) if token is not None]:
                parts.append((group, left))
        if parts:
            self._groups[word] = self._beside(parts)
        return emitted

    def _prefilled(self, joining: list[Writing]) -> tuple[_Group, Tensor]:
        """A group of its own for the new rows, and the scores (B, V) of their first tokens."""
        [order] = self.bank.passes([writing.task for writing in joining])
        rows = [joining[index] for index in order]
        names = [row.task for row in rows]
        longest = max(len(row.prompt) for row in rows)
        device = self.bank.backbone.device
        ids = torch.tensor([[0] * (longest - len(row.prompt)) + row.prompt for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row.prompt)) + [1] * len(row.prompt) for row in rows], device=device)
        given: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask}
        prompts = self.bank.entering(self.bank.route(names), len(rows))
        if prompts is not None and prompts.vectors is not None:
            given = self.bank.backbone.with_prompts(given, prompts)
        group = _Group(rows, new_cache(), given["attention_mask"], [], self.bank.route(names, entered=True))
        return group, self._called(group, given)

    def _called(self, group: _Group, given: dict[str, Tensor]) -> Tensor:
        """(B, V), the scores after the last column."""
        model: Any = self.bank.backbone.model
        entry = given.get("input_ids", given.get("inputs_embeds"))
        assert entry is not None
        if self._positions:
            positions = positions_of(group.mask, self.bank.backbone.first_position)
            given = {**given, "position_ids": positions[:, -entry.shape[1] :]}
        with self.bank.under(group.route):
            output = model(**given, past_key_values=group.cache, use_cache=True, **self._last_only)
        return output.logits[:, -1]

    def _step(self, word: str) -> list[Emitted]:
        group = self._groups[word]
        group.mask = torch.nn.functional.pad(group.mask, (0, 1), value=1)
        ids = torch.tensor(group.last, device=group.mask.device)[:, None]
        scores = self._called(group, {"input_ids": ids, "attention_mask": group.mask})
        tokens, emitted = next_tokens(group.rows, scores, self._ends)
        group.last = [0 if token is None else token for token in tokens]
        kept = [row for row, token in zip(group.rows, tokens, strict=True) if token is not None]
        if len(kept) < len(group.rows):
            self._keep(word, kept)
        return emitted

    def _keep(self, word: str, kept: list[Writing]) -> None:
        """Takes the other rows out of a group, which stays as it is where that fails."""
        group = self._groups[word]
        if kept:
            self._groups[word] = self._beside([(group, [group.rows.index(row) for row in kept])])
        else:
            del self._groups[word]

    def _beside(self, parts: Sequence[tuple[_Group, list[int]]]) -> _Group:
        """One group of the chosen rows of several, in the bank's order, without columns that are padding for all."""
        rows = [group.rows[index] for group, chosen in parts for index in chosen]
        last = [group.last[index] for group, chosen in parts for index in chosen]
        [order] = self.bank.passes([row.task for row in rows])
        places = torch.tensor(order, device=self.bank.backbone.device).argsort()
        picks, start = [], 0
        for group, chosen in parts:
            taken = torch.tensor(chosen, device=places.device)
            picks.append((group, taken, places[start : start + len(chosen)]))
            start += len(chosen)
        columns = max(int(group.mask[taken].sum(1).max()) for group, taken, _ in picks)
        cache = merged([(group.cache, taken, where) for group, taken, where in picks], columns)
        mask = merged_masks([(group.mask, taken, where) for group, taken, where in picks], columns)
        rows = [rows[index] for index in order]
        route = self.bank.route([row.task for row in rows], entered=True)
        return _Group(rows, cache, mask, [last[index] for index in order], route)


def _batches(joining: Sequence[Writing]) -> list[list[Writing]]:
    """Rows whose prompts are read together, of like length: a long one does not pad the others."""
    batches: list[list[Writing]] = []
    for writing in sorted(joining, key=lambda writing: len(writing.prompt)):
        if batches and len(writing.prompt) * (len(batches[-1]) + 1) <= PREFILL:
            batches[-1].append(writing)
        else:
            batches.append([writing])
    return batches
