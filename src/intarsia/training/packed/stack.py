"""K tasks of one form in training: one task whose tensors are (K, ...), and AdamW over all of them at once.

The tensors of a member are rows of flat ones, (K, size); the member's own task sees the same memory. So scoring, checkpoints and
folding work on the task as ever. Each member has its own learning rate, decay, moments and clipping.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from intarsia import ops
from intarsia.methods import ProjectionDelta, WeightDelta
from intarsia.task import Task
from intarsia.training.optim import HEAD, OptimizerState, head_alone, trained

if TYPE_CHECKING:
    from intarsia.training.member import Member


def form_of(task: Task) -> tuple[object, ...]:
    """Equal for tasks whose steps can be one list of kernels."""
    head = task.head
    reads = (
        None
        if head is None
        else (head.kind, head.pooling, head.outputs, head.dropout, head.loss, head.mean, head.scale)
    )
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in trained(task).items())
    return task.method, reads, shapes


class Kind(NamedTuple):
    """How a tensor is treated; those computed in half precision come first."""

    high: bool
    """Computed with as it is."""
    head: bool
    free: bool
    """Without weight decay."""


def _kinds(task: Task, *, lowered: bool) -> dict[str, Kind]:
    """Of each trained tensor, by its name."""
    free, found = task.decay_free(), {}
    for name, parameter in trained(task).items():
        owner = task.get_submodule(name.rpartition(".")[0])
        low = isinstance(owner, WeightDelta) or (isinstance(owner, ProjectionDelta) and parameter.dim() > 2)
        found[name] = Kind(not (lowered and low), name.startswith(HEAD), name in free)
    return found


class Span(NamedTuple):
    """Neighbouring numbers that are treated alike."""

    at: slice
    names: tuple[str, ...]
    low: bool
    """Whether the model computes with a copy in the backbone's dtype."""
    share: Tensor
    """(K,): of each member's learning rate."""
    decay: Tensor
    """(K,): weight decay."""


class Stack:
    """Members of one form. `task` is the task of them all, for a route's run of K rows."""

    def __init__(self, members: Sequence[Member], dtype: torch.dtype) -> None:
        """dtype: of the backbone. The matrices of projections, and replaced weights, compute in it, from a copy that follows the
        weights; vectors are read as they are, so that their gradients need no cast."""
        self.members = list(members)
        count, device, task = len(members), members[0].device, members[0].task
        self._dtype = next(task.parameters()).dtype
        kinds = _kinds(task, lowered=dtype != self._dtype)
        self.layout: dict[str, tuple[int, torch.Size]] = {}
        self.spans: list[Span] = []
        size = 0
        for kind, group in groupby(sorted(kinds, key=kinds.__getitem__), key=kinds.__getitem__):
            names, begin = tuple(group), size
            for name in names:
                shape = task.get_parameter(name).shape[1:]
                self.layout[name] = size, shape
                size += -(-shape.numel() // ops.ALIGN) * ops.ALIGN
            self.spans.append(self._span(slice(begin, size), names, kind))
        self.master, self.first, self.second = (
            torch.zeros(count, size, device=device, dtype=self._dtype) for _ in range(3)
        )
        lowest = max((span.at.stop for span in self.spans if span.low), default=0)
        self.low = torch.zeros(count, lowest, device=device, dtype=dtype)
        self._adopt()
        self.follow()
        self.task = copy.deepcopy(task).train()
        self.leaves: dict[str, Tensor] = {}
        for span in self.spans:
            for name in span.names:
                leaf = nn.Parameter(self._view(self.low if span.low else self.master, name))
                owner, _, own = name.rpartition(".")
                self.task.get_submodule(owner)._parameters[own] = self.leaves[name] = leaf  # type: ignore[assignment]
        settings = [member.settings for member in self.members]
        self.beta1, self.beta2 = (self._column([s.betas[i] for s in settings]) for i in (0, 1))
        self.eps = self._column([s.eps for s in settings])
        self.clip = self._column([s.clip or float("inf") for s in settings])

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=self._dtype, device=self.members[0].device)

    def _span(self, at: slice, names: tuple[str, ...], kind: Kind) -> Span:
        settings = [member.settings for member in self.members]
        alone = head_alone(self.members[0].task)
        share = self._column([s.head_share(alone=alone) if kind.head else 1.0 for s in settings])
        decay = self._column([0.0 if kind.free else s.decay() for s in settings])
        return Span(at, names, not kind.high, share, decay)

    def _view(self, flat: Tensor, name: str) -> Tensor:
        at, shape = self.layout[name]
        return flat[:, at : at + shape.numel()].view(-1, *shape)

    def _adopt(self) -> None:
        """The members' tensors and optimizer states move in."""
        for row, member in enumerate(self.members):
            tensors, _ = member.optimizer
            for name, parameter in trained(member.task).items():
                mine = self._view(self.master, name)[row : row + 1]
                mine.copy_(parameter.data)
                parameter.data = mine
                for key, flat in (("exp_avg", self.first), ("exp_avg_sq", self.second)):
                    if (kept := tensors.get(f"{name}/{key}")) is not None:
                        self._view(flat, name)[row : row + 1].copy_(kept)

    def follow(self) -> None:
        """What is computed with is what the members' tensors are now."""
        self.low.copy_(self.master[:, : self.low.shape[1]])

    def numbers(self) -> list[list[float]]:
        """Of the next step, for each member: learning rate, 1 - beta1^t, 1 - beta2^t."""
        found = []
        for member in self.members:
            step, (beta1, beta2) = member.state.step, member.settings.betas
            found.append([member.rate(step), 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)])
        return found

    def update(self, gradients: Sequence[Tensor | None], numbers: Tensor) -> Tensor:
        """One step of AdamW. gradients: of `leaves`, in their order; numbers: (K, 3). Returns the gradients' norms, (K,)."""
        found = dict(zip(self.leaves, gradients, strict=True))
        joined = [self._joined(span, found) for span in self.spans]
        parts = [torch.linalg.vector_norm(g, dim=1, dtype=self.master.dtype) for g in joined]
        norm = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        factor = (self.clip / (norm + 1e-6)).clamp(max=1.0)
        rate, correct1, correct2 = numbers.to(self.master.dtype).unbind(1)
        for span, gradient in zip(self.spans, joined, strict=True):
            own = rate * span.share, span.decay, self.beta1, self.beta2, self.eps
            rates = ops.Rates(*own, correct1, correct2, factor)
            low = self.low[:, span.at] if span.low else None
            ops.adamw(self.master[:, span.at], low, self.first[:, span.at], self.second[:, span.at], gradient, rates)
        return norm

    def _joined(self, span: Span, found: dict[str, Tensor | None]) -> Tensor:
        """(K, n): the gradients of a span, zeros where there are none."""
        pieces = []
        for name in span.names:
            gradient, (_, shape) = found[name], self.layout[name]
            like = self.leaves[name]
            pieces.append(torch.zeros_like(like).flatten(1) if gradient is None else gradient.flatten(1))
            if spare := -shape.numel() % ops.ALIGN:
                pieces.append(like.new_zeros(len(like), spare))
        return torch.cat(pieces, dim=1)

    def optimizer_state(self, member: Member) -> OptimizerState:
        """As torch's AdamW names it."""
        row = self.members.index(member)
        tensors: dict[str, Tensor] = {}
        for name in self.layout:
            for key, flat in (("exp_avg", self.first), ("exp_avg_sq", self.second)):
                tensors[f"{name}/{key}"] = self._view(flat, name)[row : row + 1].clone()
            tensors[f"{name}/step"] = torch.tensor(float(member.state.step))
        return tensors, {}

    def release(self) -> None:
        """The members' tasks have tensors of their own again, and their optimizer states."""
        for member in self.members:
            member.optimizer = self.optimizer_state(member)
            for parameter in trained(member.task).values():
                parameter.data = parameter.data.clone()
