"""Validation of a pack: members whose turn it is answer in shared passes, as they take their steps.

One by one, K members would take K times as many passes, each too small for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from intarsia.data import Flat
from intarsia.errors import IntarsiaError
from intarsia.heads import Head
from intarsia.staged import Returning
from intarsia.training.evaluation import Scores, mean_loss, measured
from intarsia.training.member import Member
from intarsia.training.packed.layout import Layout, Placed, Shape, place_rows
from intarsia.training.packed.losses import answers, losses
from intarsia.training.source import IGNORED, BatchSource

if TYPE_CHECKING:
    from intarsia.training.packed.stepper import PackedStepper

_LARGER = 4
"""A pass that keeps nothing for gradients takes so many times the tokens of a step. (Scores of words are larger than all else.)"""


class Scoring:
    """Of one stepper's members."""

    def __init__(self, stepper: PackedStepper) -> None:
        self._stepper = stepper
        self._layout: Layout | None = None
        self._found: dict[Member, Scores] = {}
        """Of members that have not asked yet."""
        self._rows: dict[Any, list[Flat]] = {}
        """Of each source, in its order, in parts for one pass each."""
        self._able = True

    def forget(self) -> None:
        """The members have changed."""
        self._found.clear()

    def of(self, member: Member, tick: Callable[[], None]) -> Scores:
        """As `Member.scores`, of this one; and of the others that are due with it, who will ask next."""
        if member not in self._found:
            due = [one for one in self._stepper.members if one is member or one.evaluation_due()]
            sources = {one: one.validation for one in due if one.writing is None and one.validation is not None}
            self._found |= self.together(sources, tick)
        found = self._found.pop(member, None)
        return member.scores(tick) if found is None else found

    def together(
        self, sources: Mapping[Member, BatchSource], tick: Callable[[], None] = lambda: None
    ) -> dict[Member, Scores]:
        """The scores of members on these rows; not of all, and of none where they are too few or memory is short."""
        rows = {member: parts for member, source in sources.items() if (parts := self._parts(source))}
        # Every member has room in a pass, whether it has rows or not.
        if self._able and 2 * len(rows) > len(self._stepper.members) > 1:
            try:
                return self._scored(rows, tick)
            except torch.OutOfMemoryError:
                self._able, self._layout = False, None
        return {}

    def _parts(self, source: BatchSource) -> list[Flat]:
        """None where these rows come otherwise."""
        if source not in self._rows:
            try:
                self._rows[source] = self._cut(source)
            except (IntarsiaError, ValueError):  # no labels or no rows, which is said where they are scored alone
                self._rows[source] = []
        return self._rows[source]

    def _cut(self, source: Any) -> list[Flat]:
        if not hasattr(source, "flat"):
            return []
        generates = self._stepper.readings[0].head.kind == "generation"
        room = self._stepper.layout.shape.columns * (1 if generates else _LARGER)
        rows = np.concatenate(list(source.plan(0)))
        part = np.cumsum(source.encoded.lengths[rows]) // room
        flats = [source.flat(rows[part == number]) for number in np.unique(part)]
        return [] if any(flat.labels is None for flat in flats) else flats

    @torch.no_grad()
    def _scored(self, rows: dict[Member, list[Flat]], tick: Callable[[], None]) -> dict[Member, Scores]:
        stepper = self._stepper
        placed, blank = [], []
        for member, reading in zip(stepper.members, stepper.readings, strict=True):
            placed.append([place_rows([flat], reading) for flat in rows.get(member, ())])
            source: Any = member.source
            blank.append(place_rows([source.flat(source.plan(0)[0][:1])], reading))
        layout = self._room([*blank, *(one for parts in placed for one in parts)])
        found: list[Returning] = []
        for task, _ in stepper.tasks:
            task.eval()
        try:
            with stepper.running(layout):
                for turn in range(max(map(len, placed))):
                    own = [parts[turn] if turn < len(parts) else row for parts, row in zip(placed, blank, strict=True)]
                    layout.fill(own, [0] * len(own), [(0, 0, 0)] * len(own))
                    layout.settle()
                    found.append(Returning(self._answers(layout)))
                    tick()
        finally:
            for task, _ in stepper.tasks:
                task.train()
        members = [member for stack in stepper.stacks for member in stack.members]
        # Of each pass, what belongs to each member.
        outs = [[row for form in one.wait() for row in form] for one in found]
        scored: dict[Member, Scores] = {}
        for at, member in enumerate(members):
            if member not in rows:
                continue
            with suppress(IntarsiaError):  # which is said where that member is scored alone, and concerns no other
                scored[member] = _scores(member, rows[member], placed[at], [out[at] for out in outs])
        return scored

    def _room(self, placed: Sequence[Placed]) -> Layout:
        needs = Shape.of(placed[0])
        for one in placed[1:]:
            needs = needs.grown(Shape.of(one))
        if self._layout is None or needs.grown(self._layout.shape) != self._layout.shape:
            self._layout = self._stepper.laid_out(needs)
        return self._layout

    def _answers(self, layout: Layout) -> list[Tensor]:
        """Of each form, one entry a member: its scores, or for generation its loss."""
        backbone, tasks = self._stepper.bank.backbone, self._stepper.tasks
        if layout.readings[0].head.kind == "generation":
            return [losses(backbone, tasks, layout)]
        return [scores for _, _, scores in answers(backbone, tasks, layout)]


def _scores(member: Member, rows: Sequence[Flat], placed: Sequence[Placed], outs: Sequence[Tensor]) -> Scores:
    """Of its rows, part by part, where they stood, and what came out: scores (at least B or Q, C), or the loss."""
    parts, head = list(zip(rows, placed, outs, strict=False)), member.task.head
    if head.kind == "generation":
        each = [(loss.item(), _weight(head, flat, own)) for flat, own, loss in parts]
        return Scores(scores=[], predictions=[], metrics={"loss": mean_loss(each)})
    by_row = _by_word if head.kind == "token-classification" else _by_text
    return measured(member.task, (by_row(*part) for part in parts))


def _weight(head: Head, flat: Flat, placed: Placed) -> int:
    return len(flat.lengths) if head.loss == "sentence" else len(placed.labels)


def _by_text(flat: Flat, _placed: Placed, scores: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C), and labels."""
    assert flat.labels is not None
    return scores[: len(flat.lengths)], torch.from_numpy(flat.labels)


def _by_word(flat: Flat, placed: Placed, scores: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, C), and labels (B, T): of labelled words alone."""
    owner = placed.owner[placed.places]
    counts = np.bincount(owner, minlength=len(flat.lengths))
    column = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    logits = scores.new_zeros(len(counts), max(1, counts.max()), scores.shape[-1])
    labels = torch.full(logits.shape[:2], IGNORED)
    logits[owner, column] = scores[: len(owner)]
    labels[owner, column] = torch.from_numpy(placed.labels)
    return logits, labels
