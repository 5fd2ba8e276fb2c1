"""Which rows of a call are whose: the routing of one forward pass, and what the seams get from it.

Rows are sorted, so that each source of deltas (one task, or several of one form, stacked) has one run of rows. At each site each
source's delta works on its own run, and rows of tasks without a delta there pass unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from intarsia.backbone import Backbone
from intarsia.backbone.attention import Prefix
from intarsia.backbone.entrance import Prompts
from intarsia.methods import Delta
from intarsia.mixing import mix_prefixes, mix_projections, mix_prompts
from intarsia.sites import Role
from intarsia.storage import Live, Slots, Stored
from intarsia.task import Task

Resident = Live | Stored


class NotByRow(Exception):  # noqa: N818 - the bank catches it
    """A site's output has not one entry a row, so the rows' tasks cannot be told apart there."""


class Source(Protocol):
    """Where a run of rows has its deltas from."""

    def delta(self, key: str) -> Delta | None:
        """The delta at a site, for the tasks of the run."""
        ...


class Segment(NamedTuple):
    """A run of rows with one source; stop None: all rows, however they are laid out."""

    source: Source | None
    """None: the plain backbone."""
    offset: int = 0
    """Positions by which the rows' tokens are moved."""
    start: int = 0
    stop: int | None = None

    def delta(self, key: str) -> Delta | None:
        """The source's delta at a site."""
        return None if self.source is None else self.source.delta(key)


class Route:
    """The segments of one call, as the hooks at the sites ask for them."""

    def __init__(
        self, segments: Sequence[Segment], rows: int = 0, *, entered: bool = False, beams: bool = False
    ) -> None:
        """rows: of the call; 0 with a segment for all. entered: a prompt's vectors are among the columns already, and only
        positions are still to be moved. beams: beam search may have several rows for each row of the call, side by side."""
        self.segments, self.rows, self.entered, self.beams = tuple(segments), rows, entered, beams

    def counts(self, rows: int) -> list[int]:
        """How many rows of a site's call each segment has. NotByRow where the site has not one entry a row."""
        if self.rows == 0:
            return [rows] * len(self.segments)
        if rows != self.rows and not (self.beams and rows % self.rows == 0):
            raise NotByRow
        return [(s.stop - s.start) * (rows // self.rows) for s in self.segments if s.stop is not None]

    def project(self, key: str, x: Tensor, y: Tensor) -> Tensor:
        """y', at a projection."""
        deltas = [segment.delta(key) for segment in self.segments]
        if all(delta is None for delta in deltas):
            return y
        return mix_projections(deltas, self.counts(y.shape[0]), x, y)

    def prefix(self, key: str, rows: int) -> Prefix | None:
        """What goes before the keys and values of an attention."""
        deltas = [segment.delta(key) for segment in self.segments]
        return mix_prefixes(deltas, self.counts(rows)) if any(delta is not None for delta in deltas) else None

    def prompts(self, key: str, rows: int, device: torch.device) -> Prompts | None:
        """What goes in at the input embeddings."""
        deltas = [None if self.entered else segment.delta(key) for segment in self.segments]
        offsets = [segment.offset for segment in self.segments]
        if not any(offsets) and all(delta is None for delta in deltas):
            return None
        return mix_prompts(deltas, offsets, self.counts(rows), device)

    def replacement(self, key: str) -> Tensor | None:
        """What stands in a parameter's place."""
        deltas = (segment.delta(key) for segment in self.segments)
        return next((delta() for delta in deltas if delta is not None), None)


PLAIN = Route((Segment(None),))
"""No task at all."""


def source_of(resident: Resident) -> Source:
    """The deltas of one resident."""
    return resident if isinstance(resident, Live) else resident.slots()


def route_of(resident: Resident) -> Route:
    """All rows are this one's."""
    return Route((Segment(source_of(resident), resident.task.offset),))


def route_rows(rows: Sequence[Resident | None], *, stacked: bool, entered: bool = False, beams: bool = False) -> Route:
    """The route of sorted rows. stacked: neighbours of one form become one source (a GPU wants few large products); else each
    task is its own (a CPU reads each task's tensors where they lie)."""
    runs: list[list[int]] = []
    for place, resident in enumerate(rows):
        if runs and _together(rows[runs[-1][0]], resident, stacked=stacked):
            runs[-1].append(place)
        else:
            runs.append([place])
    segments = []
    for run in runs:
        first = rows[run[0]]
        offset = 0 if first is None else first.task.offset
        segments.append(Segment(_stack([rows[place] for place in run]), offset, run[0], run[-1] + 1))
    # One task for all: its rows may be laid out in any way, so none are counted.
    alone = all(resident is rows[0] for resident in rows)
    return Route(segments, 0 if alone else len(rows), entered=entered, beams=beams)


def _together(one: Resident | None, other: Resident | None, *, stacked: bool) -> bool:
    if one is other:
        return True
    return stacked and isinstance(one, Stored) and isinstance(other, Stored) and one.form is other.form


def _stack(run: Sequence[Resident | None]) -> Source | None:
    first = run[0]
    if first is None:
        return None
    if all(other is first for other in run):
        return source_of(first)
    stored = [one for one in run if isinstance(one, Stored)]
    return Slots(stored[0].form, torch.stack([one.flat for one in stored]))


def group_rows(
    backbone: Backbone, names: Sequence[str | None], tasks: Mapping[str, Task], *, mixes: bool
) -> list[list[int]]:
    """Row indices of each pass, sorted by task: one pass for all that mix, and one for each task that cannot."""
    passes: dict[str, list[int]] = {}
    for row in range(len(names)):
        passes.setdefault(_pass(backbone, names[row], tasks, mixes=mixes), []).append(row)
    return [passes[word] for word in sorted(passes)]


def _pass(backbone: Backbone, name: str | None, tasks: Mapping[str, Task], *, mixes: bool) -> str:
    """Rows with the same word here share a pass."""
    if name is None:
        return ""
    task = tasks[name]
    # T5's relative bias is one for all rows of a call, so rows whose prefix moves their positions are by themselves.
    moved = task.offset > 0 and backbone.kind == "encoder-decoder"
    if task.alone or not mixes or task.words or moved:
        return f"task {name}"
    role = next((site.role for site in task.sites.values() if site.role is Role.EMBED_OUT), None)
    if role is None or task.prompt is None:
        return ""
    # Behind the embedding block the mask is made elsewhere; and images have no mask to hide a shorter prompt's gap.
    images = not backbone.family.gives_input_embeddings
    return f"behind the embeddings, {task.prompt.length}" if images else "behind the embeddings"
