"""Takes the steps of K members in one pass of the model; on a GPU as a CUDA graph.

Not through torch.compile: a graph is ready in seconds, and torch 2.11 could not trace the hooks of a whole model when it was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from intarsia.backbone.packed import packed
from intarsia.staged import capturing
from intarsia.training.evaluation import Scores
from intarsia.training.member import Member
from intarsia.training.optim import OptimizerState
from intarsia.training.packed.layout import Layout, Placed, Reading, Shape, TooSmall, place_rows
from intarsia.training.packed.losses import PackedRoute, losses
from intarsia.training.packed.scoring import Scoring
from intarsia.training.packed.stack import Stack, form_of

_GRAIN = 8
"""Columns and places come in multiples of it, so that a little more does not want another graph."""
_FORESEEN = 20
"""Epochs whose steps are looked at beforehand. Their sums of tokens differ by a hundredth: every unused column is computed, and
one too few makes another graph."""


class PackedStepper:
    """Members that `choice.packable` has found nothing against, and that `choice.assign` has grouped."""

    def __init__(self, members: Sequence[Member]) -> None:
        forms: dict[tuple[object, ...], list[Member]] = {}
        for member in members:
            forms.setdefault(form_of(member.task), []).append(member)
        self.bank, self.device = members[0].bank, members[0].device
        backbone = self.bank.backbone
        self.stacks = [Stack(own, backbone.dtype) for own in forms.values()]
        self.tasks = [(stack.task, len(stack.members)) for stack in self.stacks]
        self._members = [member for stack in self.stacks for member in stack.members]
        decoder, first = backbone.kind == "decoder", backbone.first_position
        self.readings = [Reading.of(m.task, first_position=first, decoder=decoder) for m in self._members]
        self.route = PackedRoute(self.tasks)
        # None are given where no row has any, as in padded batches: some models' zeros are not neutral (GPT-2).
        sources = [getattr(member.source, "encoded", None) for member in self._members]
        self.types = any(getattr(encoded, "type_ids", None) is not None for encoded in sources)
        self.leaves = [leaf for stack in self.stacks for leaf in stack.leaves.values()]
        self._replay: Callable[[], None] | None = None
        self._scoring = Scoring(self)
        self._make(_room(self._members, self.readings))
        for member in self._members:
            member.stepper = self

    @property
    def members(self) -> Sequence[Member]:
        """In the order of the rows."""
        return self._members

    def step(self) -> None:
        """One pass, one update; nothing waits for the device."""
        self._scoring.forget()
        taken = [(member.keys(), reading) for member, reading in zip(self._members, self.readings, strict=True)]
        placed = [
            place_rows([member.source.flat(key) for key in keys], reading)  # type: ignore[attr-defined]
            for member, (keys, reading) in zip(self._members, taken, strict=True)
        ]
        keys = [dropout_key(member.settings.seed, member.state.step) for member in self._members]
        numbers = [row for stack in self.stacks for row in stack.numbers()]
        self._fill(placed, keys, numbers)
        if self._replay is not None:
            self._replay()
        else:
            with self.running(self.layout):
                self._pass()
        seen = self.seen.clone()
        for row, (member, one) in enumerate(zip(self._members, placed, strict=True)):
            member.stepped(seen[row], int((one.owner >= 0).sum()))

    def evaluate(self, member: Member, tick: Callable[[], None]) -> Scores:
        """Together with all members whose turn it is."""
        return self._scoring.of(member, tick)

    def test(self, ended: Sequence[Member]) -> None:
        """With their best weights in the stacks, which nobody needs any more."""
        sources = {member: member.test for member in ended if member.test is not None}
        for member in sources:
            if member.best:
                member.task.load_tensors(member.best)
        for stack in self.stacks:
            stack.follow()
        for member, scores in self._scoring.together(sources).items():
            member.tested = scores.metrics

    def optimizer_state(self, member: Member) -> OptimizerState:
        """From the stack that has it."""
        return next(stack for stack in self.stacks if member in stack.members).optimizer_state(member)

    def close(self) -> None:
        """The members go on with tensors of their own."""
        self._replay = None
        for stack in self.stacks:
            stack.release()
        for member in self._members:
            member.stepper = None

    def _fill(self, placed: Sequence[Placed], keys: Sequence[int], numbers: Sequence[Sequence[float]]) -> None:
        try:
            self.layout.fill(placed, keys, numbers)
        except TooSmall as error:
            self._make(error.needs)
            self._fill(placed, keys, numbers)

    def _make(self, shape: Shape) -> None:
        """A layout of this shape; on a GPU, the pass as a graph. The one before goes first, and its memory."""
        if self._replay is not None:
            torch.cuda.current_stream().synchronize()
            self._replay = None
        self.layout = self.laid_out(shape)
        self.seen = torch.zeros(len(self._members), 2, device=self.device)
        if self.device.type == "cuda":
            self._capture()

    def laid_out(self, shape: Shape) -> Layout:
        """Room of at least this shape for all members."""
        shape = _rounded(shape)
        pad, dtype = self.bank.backbone.pad_id, self.stacks[0].master.dtype
        return Layout(self.readings, shape, pad=pad, types=self.types, device=self.device, dtype=dtype)

    def _capture(self) -> None:
        """Warm-up passes change no weights: they end before the update. On the capture's own stream, as cuBLAS keeps memory for
        each that it has seen; and what they took is given back."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with self.running(self.layout):
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._gradients()
            graph = torch.cuda.CUDAGraph()
            with capturing(graph, stream):
                self._pass()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.empty_cache()
        self._replay = graph.replay

    @contextmanager
    def running(self, layout: Layout) -> Iterator[None]:
        """The backbone's calls meanwhile are of all members' rows, as this layout has them."""
        backbone = self.bank.backbone
        backbone.train_mode(False)
        generates = self.readings[0].head.kind == "generation"
        reading = backbone.only(layout.read) if generates else nullcontext()
        with packed(backbone, layout.segments), self.bank.under(self.route), reading:
            yield

    def _gradients(self) -> tuple[Tensor, Sequence[Tensor | None]]:
        self.layout.settle()
        each = losses(self.bank.backbone, self.tasks, self.layout)
        # Backward in this thread: one of autograd's own would have a cuBLAS handle, and 32 MB of workspace, of its own.
        with torch.autograd.set_multithreading_enabled(False):
            return each.detach(), torch.autograd.grad(each.sum(), self.leaves, allow_unused=True)

    def _pass(self) -> None:
        """All of a step that happens on the device."""
        each, gradients = self._gradients()
        norms, at, row = [], 0, 0
        with torch.no_grad():
            for stack in self.stacks:
                own = gradients[at : (at := at + len(stack.leaves))]
                numbers = self.layout.here["step"][row : (row := row + len(stack.members))]
                norms.append(stack.update(own, numbers))
            self.seen.copy_(torch.stack([each.float(), torch.cat(norms).float()], dim=1))


def dropout_key(seed: int, step: int) -> int:
    """32 bits that are a member's own at each step, whoever else is in the pack."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def _room(members: Sequence[Member], readings: Sequence[Reading]) -> Shape:
    """What the first epochs' steps want, as far as it can be told without reading them."""
    found = Shape(1, 1, 1, 1)
    for member, reading in zip(members, readings, strict=True):
        n, source = member.settings.accumulate, member.source
        plans = [source.plan(epoch) for epoch in range(min(_FORESEEN, member.settings.epochs))]
        steps = [plan[at : at + n] for plan in plans for at in range(0, len(plan), n)]
        rows = max(sum(len(key) for key in keys) for keys in steps)
        tokens = max(sum(source.tokens(key) for key in keys) for keys in steps)
        columns = tokens + rows * reading.prompt + 1
        longest = int(source.encoded.lengths.max()) + reading.prompt  # type: ignore[attr-defined]
        sample = [place_rows([source.flat(key) for key in keys], reading) for keys in steps[:8]]  # type: ignore[attr-defined]
        found = found.grown(Shape(rows, columns, max(len(one.places) for one in sample), longest))
    return found


def _rounded(shape: Shape) -> Shape:
    columns, places = (-(-size // _GRAIN) * _GRAIN for size in (shape.columns, shape.places))
    return shape._replace(columns=columns, places=places if shape.places > shape.rows else shape.rows)
