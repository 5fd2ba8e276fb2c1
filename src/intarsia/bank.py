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
from intarsia.backbone.attention import Prefix
from intarsia.backbone.entrance import Prompts
from intarsia.backbone.hooks import Hooks
from intarsia.backbone.language import generate, word_scores
from intarsia.errors import ConfigError, TaskError, nearest
from intarsia.heads import IGNORED, Decoding
from intarsia.methods import Delta, ProjectionDelta
from intarsia.mixing import mix_prefixes, mix_prompts
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
    deltas: dict[str, Delta | None] = field(default_factory=dict)
    """None: the task only moves its positions there."""


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
        self._beams = False
        self._entered = False
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
        hooked = {key: self._hook(site) for key, site in task.sites.items() if key not in self._places}
        self._places |= hooked
        self.tasks[task.name] = task
        for key in task.sites:
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
        task without a head, or of generation. One name per row, None for the plain backbone -> a list of B results without
        the axis B. A prompt's virtual tokens are in none of them.
        With gradient checkpointing, run backward before the next call: the recomputation uses this call's routing.
        """
        if isinstance(tasks, str):
            with self._routed((Segment(self._known(tasks)),), rows=0):
                if (task := self.tasks[tasks]).words:
                    return self._words(task, batch)
                states = self._again(self.backbone.features(batch))
                return self._result(task, states, self.backbone.mask(batch))
        rows = len(next(iter(batch.values())))
        self._check_rows(rows, tasks)
        try:
            return self._by_row(batch, tasks)
        except _NotByRow:
            # Found once, kept: this backbone computes something for all rows together at a site (DeBERTa's position table).
            self._mixes = False
            return self._by_row(batch, tasks)

    def loss(self, batch: Mapping[str, Tensor], labels: Tensor, task: str) -> Tensor:
        """The task's mean loss on a batch. labels: as for heads.loss; for generation (B, T), -100 where nothing is to be learnt,
        at each token's own place, as transformers has them.

        Generation: the mean over target tokens; with Head.loss "sentence" their sum, as a mean over the rows.
        """
        head = self.tasks[self._known(task)].head
        if head is None or head.kind != "generation":
            return self.tasks[task].loss(self(batch, tasks=task), labels)
        labels = labels.to(self.backbone.device)
        if self.backbone.kind == "decoder":
            # The state at a token says the next one.
            labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        wanted = labels != IGNORED
        with self._routed((Segment(task),), rows=0):
            scores = self._again(self.backbone.token_scores(batch, wanted))
            mean = self.tasks[task].loss(scores, labels[wanted])
        return mean * wanted.sum() / len(labels) if head.loss == "sentence" else mean

    @torch.no_grad()
    def generate(
        self, batch: Mapping[str, Tensor], tasks: str | RowTasks, decoding: Decoding | None = None
    ) -> list[Tensor]:
        """The new tokens of each row, B int64 tensors without padding and end-of-sequence token.

        batch: input_ids and attention_mask (B, T), padded on the left for decoders; tasks: one name, or one for each row (None:
        the plain backbone). Prompts, prefixes and all other methods mix. ConfigError where the model has no language-model head,
        or a decoder's rows end in padding.
        """
        decoding = decoding or Decoding()
        _ = self.backbone.language_head
        rows = len(batch["input_ids"])
        names = [tasks] * rows if isinstance(tasks, str) else list(tasks)
        self._check_rows(rows, names)
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        if self.backbone.kind == "decoder" and not bool(mask[:, -1].all()):
            raise ConfigError("a decoder goes on from the last column, and some row ends in padding; pad on the left")
        batch = {**batch, "attention_mask": mask}
        found: list[Tensor] = [torch.empty(0)] * rows
        for group in self._passes(names):
            for row, new in zip(group, self._generated(batch, group, names, decoding), strict=True):
                found[row] = new
        return found

    def _generated(
        self, batch: Mapping[str, Tensor], order: list[int], tasks: Sequence[str | None], decoding: Decoding
    ) -> list[Tensor]:
        part, segments = self._sorted(batch, order, tasks)
        devices = [self.backbone.device] if self.backbone.device.type == "cuda" else []
        with self._routed(segments, rows=len(order)), torch.random.fork_rng(devices=devices, enabled=decoding.sample):
            if decoding.sample:
                torch.manual_seed(decoding.seed)
            prompts = self._entering(len(order)) if self.backbone.kind == "decoder" else None
            self._beams, self._entered = True, self.backbone.kind == "decoder"
            try:
                return generate(self.backbone, part, decoding.settings(), prompts)
            finally:
                self._beams = self._entered = False

    def _entering(self, rows: int) -> Prompts | None:
        place = next((p for p in self._places.values() if p.site.role is Role.EMBED), None)
        return None if place is None else self._prompts(place, rows)

    def _words(self, task: Task, batch: Mapping[str, Tensor]) -> Tensor:
        return self._again(word_scores(self.backbone, batch, task.words))

    def _check_rows(self, rows: int, tasks: Sequence[str | None]) -> None:
        if len(tasks) != rows:
            raise ConfigError(
                f"the batch has {rows} rows but {len(tasks)} task names were given; give one for each row."
            )
        for name in tasks:
            if name is not None:
                self._known(name)

    def _by_row(self, batch: Mapping[str, Tensor], tasks: RowTasks) -> list[Tensor]:
        results: list[Tensor] = [torch.empty(0)] * len(tasks)
        for group in self._passes(tasks):
            for row, result in zip(group, self._mixed(batch, group, tasks), strict=True):
                results[row] = result
        return results

    def _passes(self, tasks: Sequence[str | None]) -> Iterator[list[int]]:
        """Row indices of each pass, sorted by task: one pass for all that mix, one for each task that replaces weights."""
        passes: dict[str, list[int]] = {}
        for row in sorted(range(len(tasks)), key=lambda row: tasks[row] or ""):
            passes.setdefault(self._pass(tasks[row]), []).append(row)
        yield from (passes[key] for key in sorted(passes))

    def _pass(self, name: str | None) -> str:
        """Rows with the same word here share a pass."""
        if name is None:
            return ""
        task = self.tasks[name]
        # T5's relative bias is one for all rows of a call, so rows whose prefix moves their positions are by themselves.
        moved = task.offset > 0 and self.backbone.kind == "encoder-decoder"
        if task.alone or not self._mixes or task.words or moved:
            return f"task {name}"
        role = next((site.role for site in task.sites.values() if site.role is Role.EMBED_OUT), None)
        if role is None or task.prompt is None:
            return ""
        # Behind the embedding block the mask is made elsewhere; and images have no mask to hide a shorter prompt's gap.
        images = not self.backbone.family.gives_input_embeddings
        return f"behind the embeddings, {task.prompt.length}" if images else "behind the embeddings"

    def _sorted(
        self, batch: Mapping[str, Tensor], order: list[int], tasks: Sequence[str | None]
    ) -> tuple[dict[str, Tensor], tuple[Segment, ...]]:
        """The rows of one pass, and the runs of equal tasks in them."""
        index = torch.tensor(order)
        part = {name: tensor[index.to(tensor.device)] for name, tensor in batch.items()}
        segments: list[Segment] = []
        for place, row in enumerate(order):
            if segments and segments[-1].task == tasks[row]:
                segments[-1] = segments[-1]._replace(stop=place + 1)
            else:
                segments.append(Segment(tasks[row], place, place + 1))
        return part, tuple(segments)

    def _mixed(self, batch: Mapping[str, Tensor], order: list[int], tasks: Sequence[str | None]) -> Iterator[Tensor]:
        part, segments = self._sorted(batch, order, tasks)
        with self._routed(segments, rows=len(order)):
            if (name := segments[0].task) is not None and self.tasks[name].words:
                yield from self._words(self.tasks[name], part)
                return
            states, mask = self._again(self.backbone.features(part)), self.backbone.mask(part)
            for name, start, stop in segments:
                own = states[start:stop]
                seen = None if mask is None else mask[start:stop]
                self._segments = (Segment(name),)  # the pretrained pooler sees these rows alone
                yield from own if name is None else self._result(self.tasks[name], own, seen)
            self._segments = segments

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

        def extend(rows: int) -> Prefix | None:
            return self._prefix(place, rows)

        def enter(rows: int) -> Prompts | None:
            return self._prompts(place, rows)

        changes = {Role.WEIGHT: replace, Role.KV: extend, Role.EMBED: enter, Role.EMBED_OUT: enter}
        place.hooks = self.backbone.hook(site, changes.get(site.role, project))
        return place

    def _counts(self, rows: int) -> list[int]:
        """How many rows of this call each segment has. Beam search has several for each row of the batch, side by side."""
        if len(self._segments) == 1:
            return [rows]
        if rows != self._rows and not (self._beams and rows % self._rows == 0):
            raise _NotByRow
        return [(s.stop - s.start) * (rows // self._rows) for s in self._segments if s.stop is not None]

    def _prefix(self, place: _Place, rows: int) -> Prefix | None:
        deltas = [place.deltas.get(segment.task or "") for segment in self._segments]
        return mix_prefixes(deltas, self._counts(rows)) if any(delta is not None for delta in deltas) else None

    def _prompts(self, place: _Place, rows: int) -> Prompts | None:
        deltas = [place.deltas.get(s.task or "") for s in self._segments]
        offsets = [self.tasks[s.task].offset if s.task in place.deltas else 0 for s in self._segments]  # type: ignore[index]
        if self._entered:  # the prompts are in already; positions are still to be moved
            deltas = [None for _ in deltas]
        if not any(offsets) and all(delta is None for delta in deltas):
            return None
        return mix_prompts(deltas, offsets, self._counts(rows), self.backbone.device)

    def _project(self, place: _Place, x: Tensor, y: Tensor) -> Tensor:
        """Each segment's rows through its task's delta; rows of tasks without one here pass unchanged."""
        segments = self._segments
        if len(segments) == 1:  # one task: however its rows are laid out
            delta = place.deltas.get(segments[0].task or "")
            return y if delta is None else delta(x, y, None)
        if not any(segment.task in place.deltas for segment in segments):
            return y
        pieces, stop = [], 0
        for segment, count in zip(segments, self._counts(y.shape[0]), strict=True):
            span = slice(stop, stop := stop + count)
            delta = place.deltas.get(segment.task or "")
            if delta is None:
                pieces.append(y[span])
            else:
                assert isinstance(delta, ProjectionDelta)
                pieces.append(delta(x[span], y[span], None))
        return torch.cat(pieces)
