"""TaskBank: many tasks on one backbone. The one place where a delta meets a site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, overload

import torch
from torch import Tensor

from intarsia.backbone import Backbone
from intarsia.backbone.hooks import Hooks
from intarsia.errors import ConfigError, TaskError, nearest
from intarsia.methods import Delta, ProjectionDelta
from intarsia.sites import Role, Site
from intarsia.task import Task

RowTasks = list[str | None] | list[str] | tuple[str | None, ...]
"""The task of each row; None: the plain backbone."""


class _NotByRow(Exception):  # noqa: N818 - never leaves this file
    """A site's output has not one entry a row, so the rows' tasks cannot be told apart there."""


class Segment(NamedTuple):
    """Rows start to stop of a batch sorted by task; stop None: all rows, however they are laid out."""

    task: str | None
    start: int = 0
    stop: int | None = None


@dataclass(slots=True)
class _Place:
    """A hooked site and the deltas that the bank's tasks have there."""

    site: Site
    hooks: Hooks
    deltas: dict[str, Delta] = field(default_factory=dict)


class TaskBank:
    """Tasks on one backbone, and the calls that mix them in a batch.

    A row's result does not depend on its neighbours: rows are sorted by task once per batch, and at each site each task's
    delta works on its own rows. Tasks that replace weights of the backbone (`Task.alone`) get a pass of their own.
    """

    def __init__(self, backbone: Backbone, tasks: Sequence[Task] = ()) -> None:
        self.backbone = backbone
        self.tasks: dict[str, Task] = {}
        self._places: dict[str, _Place] = {}
        self._default: tuple[Segment, ...] = ()
        self._mixes = True
        self._rows = 0
        self._segments: tuple[Segment, ...] = ()
        for task in tasks:
            self.add(task)

    def add(self, task: Task) -> None:
        """Makes a task resident. TaskError when its name is taken or it belongs to another backbone."""
        if task.name in self.tasks:
            raise TaskError(f"the bank already holds a task named {task.name!r}; evict it first or give another name.")
        if task.backbone_info["fingerprint"] != self.backbone.fingerprint:
            raise TaskError(
                f"task {task.name!r} was made for backbone {task.backbone_info['name']!r}, the bank's is {self.backbone.name!r}."
            )
        known = {site.key for site in self.backbone.sites}
        if missing := [key for key in task.sites if key not in known]:
            raise TaskError(
                f"task {task.name!r} has a module at {missing[0]!r}, which this class of the model lacks; load the backbone "
                "as the class that the task was made on."
            )
        self.tasks[task.name] = task
        for key, site in task.sites.items():
            if key not in self._places:
                self._places[key] = self._hook(site)
            self._places[key].deltas[task.name] = task.delta(key)

    def load(self, folder: str | Path) -> Task:
        """Loads a task folder and adds it."""
        task = Task.load(folder, self.backbone)
        self.add(task)
        return task

    def evict(self, name: str) -> Task:
        """Takes a task out and returns it; sites that no other task uses lose their hooks."""
        task = self.tasks.pop(self._known(name))
        for key in task.sites:
            place = self._places[key]
            del place.deltas[name]
            if not place.deltas:
                place.hooks.remove()
                del self._places[key]
        if self._default == (Segment(name),):
            self.activate(None)
        return task

    def detach(self) -> None:
        """Takes all tasks out; the backbone's outputs are as before, to the bit."""
        for name in list(self.tasks):
            self.evict(name)

    def activate(self, name: str | None) -> None:
        """The task of every row when the model itself is called, as in a user's own loop over `backbone.model`; None: none."""
        self._default = () if name is None else (Segment(self._known(name)),)
        self._segments = self._default

    @overload
    def __call__(self, batch: Mapping[str, Tensor], tasks: str) -> Tensor: ...
    @overload
    def __call__(self, batch: Mapping[str, Tensor], tasks: RowTasks) -> list[Tensor]: ...
    def __call__(self, batch: Mapping[str, Tensor], tasks: str | RowTasks) -> Tensor | list[Tensor]:
        """One forward pass. batch: what the tokenizer gives, (B, T) tensors.

        tasks: one name for all rows -> scores (B, C), or (B, T, C) for token classification, in fp32; states (B, T, D) for a
        task without a head. One name per row, None for the plain backbone -> a list of B results without the axis B.
        With gradient checkpointing, run backward before the next call: the recomputation uses this call's routing.
        """
        if isinstance(tasks, str):
            with self._routed((Segment(self._known(tasks)),), rows=0):
                states = self._again(self.backbone.features(batch))
                return self._result(self.tasks[tasks], states, self.backbone.mask(batch))
        rows = len(next(iter(batch.values())))
        if len(tasks) != rows:
            raise ConfigError(
                f"the batch has {rows} rows but {len(tasks)} task names were given; give one for each row."
            )
        for name in tasks:
            if name is not None:
                self._known(name)
        try:
            return self._by_row(batch, tasks)
        except _NotByRow:
            # Found once, kept: this backbone computes something for all rows together at a site (DeBERTa's position table).
            self._mixes = False
            return self._by_row(batch, tasks)

    def _by_row(self, batch: Mapping[str, Tensor], tasks: RowTasks) -> list[Tensor]:
        results: list[Tensor] = [torch.empty(0)] * len(tasks)
        for group in self._passes(tasks):
            for row, result in zip(group, self._mixed(batch, group, tasks), strict=True):
                results[row] = result
        return results

    def _passes(self, tasks: Sequence[str | None]) -> Iterator[list[int]]:
        """Row indices of each pass, sorted by task: one pass for all that mix, one for each task that replaces weights."""
        order = sorted(range(len(tasks)), key=lambda row: tasks[row] or "")
        alone = {n for n in set(tasks) if n is not None and (self.tasks[n].alone or not self._mixes)}
        if mixed := [row for row in order if tasks[row] not in alone]:
            yield mixed
        for name in sorted(alone):
            yield [row for row in order if tasks[row] == name]

    def _mixed(self, batch: Mapping[str, Tensor], order: list[int], tasks: Sequence[str | None]) -> Iterator[Tensor]:
        index = torch.tensor(order)
        part = {name: tensor[index.to(tensor.device)] for name, tensor in batch.items()}
        segments = []
        for place, row in enumerate(order):
            if segments and segments[-1].task == tasks[row]:
                segments[-1] = segments[-1]._replace(stop=place + 1)
            else:
                segments.append(Segment(tasks[row], place, place + 1))
        with self._routed(tuple(segments), rows=len(order)):
            states, mask = self._again(self.backbone.features(part)), self.backbone.mask(part)
            for name, start, stop in segments:
                own = states[start:stop]
                seen = None if mask is None else mask[start:stop]
                self._segments = (Segment(name),)  # the pretrained pooler sees these rows alone
                yield from own if name is None else self._result(self.tasks[name], own, seen)
            self._segments = tuple(segments)

    def _result(self, task: Task, states: Tensor, mask: Tensor | None) -> Tensor:
        if task.head_module is None:
            return states
        return task.head_module(states, mask, getattr(self.backbone.base, "pooler", None))

    def _known(self, name: str) -> str:
        if name not in self.tasks:
            known = list(self.tasks)
            raise TaskError(
                f"the bank holds no task {name!r}; it holds: {', '.join(known) or 'none'}{nearest(name, known)}"
            )
        return name

    @contextmanager
    def _routed(self, segments: tuple[Segment, ...], rows: int) -> Iterator[None]:
        self._segments, self._rows = segments, rows
        try:
            yield
        finally:
            self._segments = self._default

    def _again(self, states: Tensor) -> Tensor:
        """Gradient checkpointing runs the hooks again during backward, and then wants this call's routing."""
        if states.requires_grad and self.backbone.checkpointing:
            routing = self._segments, self._rows

            def during(_grad: Tensor) -> None:
                self._segments, self._rows = routing
                torch.autograd.Variable._execution_engine.queue_callback(after)

            def after() -> None:
                self._segments = self._default

            states.register_hook(during)
        return states

    def _hook(self, site: Site) -> _Place:
        place = _Place(site, Hooks())

        def project(x: Tensor, y: Tensor) -> Tensor:
            return self._project(place, x, y)

        def replace() -> Tensor | None:
            delta = next((place.deltas[s.task] for s in self._segments if s.task in place.deltas), None)
            return None if delta is None else delta()

        place.hooks = self.backbone.hook(site, replace if site.role is Role.WEIGHT else project)
        return place

    def _project(self, place: _Place, x: Tensor, y: Tensor) -> Tensor:
        """Each segment's rows through its task's delta; rows of tasks without one here pass unchanged."""
        segments = self._segments
        if len(segments) == 1:  # one task: however its rows are laid out
            delta = place.deltas.get(segments[0].task or "")
            return y if delta is None else delta(x, y, None)
        if not any(segment.task in place.deltas for segment in segments):
            return y
        if y.shape[0] != self._rows and len(segments) > 1:
            raise _NotByRow
        pieces = []
        for name, start, stop in segments:
            span = slice(start, stop)
            delta = place.deltas.get(name or "")
            if delta is None:
                pieces.append(y[span])
            else:
                assert isinstance(delta, ProjectionDelta)
                pieces.append(delta(x[span], y[span], None))
        return torch.cat(pieces)
