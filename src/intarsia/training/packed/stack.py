"""K tasks of one form in training: one task whose tensors are (K, ...), and AdamW over all of them at once.

The tensors of a member are rows of flat ones, (K, size); the member's own task sees the same memory. So scoring, checkpoints and
folding work on the task as ever. AdamW is Loshchilov and Hutter 2019 (https://arxiv.org/abs/1711.05101), in torch's order of
operations; each member has its own learning rate, decay, moments and clipping.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from intarsia.methods import ProjectionDelta, WeightDelta
from intarsia.task import Task
from intarsia.training.optim import OptimizerState, trained

if TYPE_CHECKING:
    from intarsia.training.member import Member

_ALIGN = 8
"""Tensors begin at multiples of so many numbers: 16 bytes in half precision, as matrix units want."""


def form_of(task: Task) -> tuple[object, ...]:
    """Equal for tasks whose steps can be one list of kernels."""
    head = task.head
    reads = None if head is None else (head.kind, head.pooling, head.outputs, head.dropout, head.loss)
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in trained(task).items())
    return task.method, reads, shapes


class Stack:
    """Members of one form. `task` is the task of them all, for a route's run of K rows."""

    def __init__(self, members: Sequence[Member], dtype: torch.dtype) -> None:
        """dtype: of the backbone. Projections and replaced weights compute in it, from a copy that is made once a step."""
        self.members = list(members)
        count, device = len(members), members[0].device
        self.layout: dict[str, tuple[int, torch.Size]] = {}
        size = 0
        for name, parameter in trained(members[0].task).items():
            self.layout[name] = size, parameter.shape[1:]
            size += -(-parameter.numel() // _ALIGN) * _ALIGN
        self.master, self.gradient, self.first, self.second = (
            torch.zeros(count, size, device=device, dtype=next(members[0].task.parameters()).dtype) for _ in range(4)
        )
        self.low = (
            self.master.new_zeros(0) if dtype == self.master.dtype else torch.zeros_like(self.master, dtype=dtype)
        )
        self._adopt()
        self.task = copy.deepcopy(members[0].task).train()
        self.leaves: dict[str, Tensor] = {}
        for path, module in self.task.named_modules():
            lowered = isinstance(module, ProjectionDelta | WeightDelta) and self.low.numel()
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    full = f"{path}.{name}" if path else name
                    module._parameters[name] = self.leaves[full] = nn.Parameter(  # type: ignore[assignment]
                        self._view(self.low if lowered else self.master, full)
                    )
        self._constants()

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

    def _constants(self) -> None:
        """What AdamW needs of each member and each number, and never changes."""
        task, like = self.members[0].task, self.master
        decayed, headed = torch.ones_like(like[:1]), torch.zeros_like(like[:1])
        for name, (at, shape) in self.layout.items():
            span = slice(at, at + shape.numel())
            decayed[:, span] = 0.0 if name in task.decay_free() else 1.0
            headed[:, span] = 1.0 if name.startswith("head_module.") else 0.0
        settings = [member.settings for member in self.members]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]

        self.share = 1 + headed * (column([s.head_share() for s in settings]) - 1)
        self.decay = decayed * column([s.decay() for s in settings])
        self.beta1, self.beta2 = (column([s.betas[i] for s in settings]) for i in (0, 1))
        self.eps = column([s.eps for s in settings])
        self.clip = column([s.clip or float("inf") for s in settings])

    def numbers(self) -> list[list[float]]:
        """Of the next step, for each member: learning rate, 1 - beta1^t, 1 - beta2^t."""
        found = []
        for member in self.members:
            step, (beta1, beta2) = member.state.step, member.settings.betas
            found.append([member.rate(step), 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)])
        return found

    def lower(self) -> None:
        """Before a forward pass: the copy in the backbone's dtype."""
        if self.low.numel():
            self.low.copy_(self.master)

    def update(self, gradients: Sequence[Tensor | None], numbers: Tensor) -> Tensor:
        """One step of AdamW. gradients: of `leaves`, in their order; numbers: (K, 3). Returns the gradients' norms, (K,)."""
        places = [self._view(self.gradient, name) for name in self.leaves]
        given = [(place, g) for place, g in zip(places, gradients, strict=True) if g is not None]
        torch._foreach_copy_([place for place, _ in given], [g for _, g in given])
        rate, correct1, correct2 = (numbers[:, i : i + 1].to(self.master.dtype) for i in range(3))
        g, m, v = self.gradient, self.first, self.second
        norm = torch.linalg.vector_norm(g, dim=1, keepdim=True)
        g = g * (self.clip / (norm + 1e-6)).clamp(max=1.0)
        rate = rate * self.share
        self.master.mul_(1 - rate * self.decay)
        m.add_((g - m) * (1 - self.beta1))
        v.mul_(self.beta2).add_(g * g * (1 - self.beta2))
        self.master.sub_(rate / correct1 * m / (v.sqrt() / correct2.sqrt() + self.eps))
        return norm[:, 0]

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
