"""Which rows of a call are whose: the routing of one forward pass, and what the seams get from it.

Rows are sorted, so that those of one task stand together, and tasks of one form too. At each site each delta works on its own rows,
and rows of tasks without a delta there pass unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from intarsia.backbone import Backbone
from intarsia.backbone.attention import Prefix
from intarsia.backbone.entrance import Prompts
from intarsia.methods import Delta
from intarsia.mixing import mix_norms, mix_prefixes, mix_projections, mix_prompts
from intarsia.ops import Before, Own, Pieces, Summed, by_row
from intarsia.sites import Role
from intarsia.storage import Live, Stored
from intarsia.task import Task

Resident = Live | Stored


class NotByRow(Exception):  # noqa: N818 - the bank catches it
    """A site's output has not one entry a row, so the rows' tasks cannot be told apart there."""


class Run(Protocol):
    """Neighbouring rows of a sorted batch that one delta serves at each site."""

    rows: int
    offset: int
    """Positions by which the rows' tokens are moved."""

    def delta(self, key: str) -> Delta | None:
        """The delta at a site; None: the rows pass unchanged."""
        ...


class OneRun:
    """Rows of the plain backbone (None), or of one task in training."""

    def __init__(self, task: Task | None, rows: int) -> None:
        self.task, self.rows = task, rows
        self.offset = 0 if task is None else task.offset

    def delta(self, key: str) -> Delta | None:
        """The task's own."""
        return None if self.task is None else self.task.delta(key)


class StoredRun:
    """Rows of stored tasks of one form.

    A GPU wants few launches, so the rows' tasks are stacked, once for all sites. A CPU reads each task's matrices where they lie.
    The tensors that the tasks have now are kept as long as the run is.
    """

    def __init__(self, tasks: Sequence[tuple[Stored, int]], *, stacked: bool) -> None:
        """tasks: each with the number of its rows, in order."""
        self.form, self.offset = tasks[0][0].form, tasks[0][0].form.offset
        self.counts = [count for _, count in tasks]
        self.rows = sum(self.counts)
        self.tasks, self.stacked = [stored.flat for stored, _ in tasks], stacked

    @cached_property
    def tensors(self) -> tuple[Sequence[Tensor], Sequence[Sequence[Tensor]]]:
        """What is brought together of the tasks, and each one's matrices that lie apart."""
        if len(self.tasks) == 1:
            return self.form.pieces(self.tasks[0]), ()
        if not self.stacked:
            near, apart = zip(*map(self.form.parts, self.tasks), strict=True)
            return self.form.near_pieces(torch.stack(by_row(near, self.counts))), apart
        return self.form.pieces(torch.stack(by_row(self.tasks, self.counts))), ()

    def delta(self, key: str) -> Delta | None:
        """One delta for all of the tasks."""
        near, apart = self.tensors
        if not apart:
            return self.form.delta(key, near)
        return self.form.delta(
            key, near, lambda index, shape: Pieces([own[index] for own in apart], shape, self.counts)
        )


class Route:
    """The runs of one call's rows, as the hooks at the sites ask for them."""

    def __init__(self, runs: Sequence[Run], rows: int = 0, *, entered: bool = False, beams: bool = False) -> None:
        """rows: of the call; 0 where all are of one task, and may be laid out in any way. entered: a prompt's vectors are among
        the columns already, and only positions are still to be moved. beams: beam search may have several rows for each row of
        the call, side by side."""
        self.runs, self.rows, self.entered, self.beams = tuple(runs), rows, entered, beams
        self._deltas: dict[str, list[Delta | None]] = {}
        self._kept: dict[Any, Any] = {}

    def project(self, key: str, x: Tensor, y: Tensor) -> Tensor:
        """y', at a projection."""
        deltas = self._at(key)
        if all(delta is None for delta in deltas):
            return y
        return mix_projections(deltas, self._counts(y.shape[0]), x, y)

    def norm(self, key: str, x: Tensor | Summed, own: Own) -> Tensor | None:
        """y', at a norm that nobody has computed yet; None: it is the frozen one."""
        deltas = self._at(key)
        return None if all(delta is None for delta in deltas) else mix_norms(deltas, self._counts(x.shape[0]), x, own)

    def prefix(self, key: str, rows: int) -> list[Prefix] | Before | None:
        """What goes before the keys and values of an attention, run by run."""
        deltas = self._at(key)
        return None if all(delta is None for delta in deltas) else mix_prefixes(deltas, self._counts(rows), self._kept)

    def prompts(self, key: str, rows: int, device: torch.device) -> Prompts | None:
        """What goes in at the input embeddings."""
        deltas = [None for _ in self.runs] if self.entered else self._at(key)
        offsets = [run.offset for run in self.runs]
        if not any(offsets) and all(delta is None for delta in deltas):
            return None
        return mix_prompts(deltas, offsets, self._counts(rows), device)

    def replacement(self, key: str) -> Tensor | None:
        """What stands in a parameter's place."""
        return next((delta() for delta in self._at(key) if delta is not None), None)

    def _at(self, key: str) -> list[Delta | None]:
        if key not in self._deltas:
            self._deltas[key] = [run.delta(key) for run in self.runs]
        return self._deltas[key]

    def _counts(self, rows: int) -> list[int]:
        """How many rows of a site's call each run has. NotByRow where the site has not one entry a row."""
        if self.rows == 0:
            return [rows]
        if rows != self.rows and not (self.beams and rows % self.rows == 0):
            raise NotByRow
        return [run.rows * (rows // self.rows) for run in self.runs]


PLAIN = Route([OneRun(None, 0)])
"""No task at all."""


def route_of(resident: Resident) -> Route:
    """All rows are this one's."""
    return Route([_run([resident], stacked=False)])


def route_rows(rows: Sequence[Resident | None], *, stacked: bool, entered: bool = False, beams: bool = False) -> Route:
    """The route of sorted rows. stacked: tasks of one form go through one product together."""
    runs: list[list[Resident | None]] = []
    for resident in rows:
        if runs and _together(runs[-1][0], resident):
            runs[-1].append(resident)
        else:
            runs.append([resident])
    # One task for all: its rows may be laid out in any way, so none are counted.
    alone = all(resident is rows[0] for resident in rows)
    found = [_run(run, stacked=stacked) for run in runs]
    return Route(found, 0 if alone else len(rows), entered=entered, beams=beams)


def _together(one: Resident | None, other: Resident | None) -> bool:
    if one is other:
        return True
    return isinstance(one, Stored) and isinstance(other, Stored) and one.form is other.form


def _run(rows: Sequence[Resident | None], *, stacked: bool) -> Run:
    first = rows[0]
    if not isinstance(first, Stored):
        return OneRun(None if first is None else first.task, len(rows))
    stored = [one for one in rows if isinstance(one, Stored)]
    tasks = [(one, sum(1 for _ in same)) for one, same in groupby(stored)]
    return StoredRun(tasks, stacked=stacked)


def group_rows(
    backbone: Backbone, names: Sequence[str | None], tasks: Mapping[str, Task], *, mixes: bool
) -> list[list[int]]:
    """Row indices of each pass, sorted by task: one pass for all that mix, and one for each task that cannot."""
    passes: dict[str, list[int]] = {}
    for row in range(len(names)):
        passes.setdefault(pass_of(backbone, names[row], tasks, mixes=mixes), []).append(row)
    return [passes[word] for word in sorted(passes)]


def pass_of(backbone: Backbone, name: str | None, tasks: Mapping[str, Task], *, mixes: bool) -> str:
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
