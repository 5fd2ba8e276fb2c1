"""Where the tensors of resident tasks lie: each stored task is one flat tensor, so that it comes, goes and is paged as one copy.

Tasks of equal shape share a `Form`: their deltas without tensors, and where each tensor lies in the flat one. What costs memory
per task is its numbers, and little else. N tasks of one form, one below the other, are the (N, ...) tensors that deltas take;
large matrices are not brought together where they can be read as they lie, since that would cost more than their products.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from intarsia.heads import FrozenHead
from intarsia.light import LightTask, facts
from intarsia.methods import Delta, EmbeddingDelta, ProjectionDelta
from intarsia.modes import own_modes
from intarsia.ops import ALIGN, At, Rows
from intarsia.ops.reference import Weight
from intarsia.sites import Role
from intarsia.task import Task

SMALL = 4096
"""Numbers of a matrix up to which copying it costs less than a product of its own (measured on two cores)."""


def form_key(task: Task) -> tuple[object, ...]:
    """Equal for tasks that can share a form."""
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in task.tensors().items() if name[:4] != "head")
    return task.method.folded(), task.offset, shapes


class Place(NamedTuple):
    """Where a tensor of a delta lies."""

    name: str
    piece: int
    """Its number among the pieces of the flat tensor."""
    shape: torch.Size
    """Without the task axis."""


class Form:
    """What tasks of equal shape share."""

    def __init__(self, task: Task) -> None:
        self.key = form_key(task)
        self.users = 0
        """Stored tasks that have it."""
        self.shells: dict[str, Delta] = {}
        self.layout: dict[str, list[Place]] = {}
        """By the site's key."""
        self.sizes: list[int] = []
        """Numbers of each piece of a flat tensor; some are what fills up to `ALIGN`."""
        self.offset = task.offset
        """Positions by which the rows' tokens are moved."""
        self.behind = any(site.role is Role.EMBED_OUT for site in task.sites.values())
        """Whether the prompt goes in behind the embedding block."""
        for key in task.sites:
            if (delta := task.delta(key)) is not None:
                self.shells[key] = copy.deepcopy(delta.fold()).to("meta").eval()
        self.modules = nn.ModuleDict({key.replace(".", ":"): shell for key, shell in self.shells.items()})
        """What stored tasks have for deltas."""
        self.common: dict[str, Any] = {}
        """What its first stored task knows, for others that know the same."""
        self.layout = {key: [] for key in self.shells}
        self._place(apart=False)
        self.near = len(self.sizes)
        """Pieces of tensors that a batch's tasks are cheaper to have together; those behind them are read where they lie."""
        self.near_size = sum(self.sizes)
        self._place(apart=True)

    @cached_property
    def addressed(self) -> bool:
        """Whether kernels find all of a task's tensors by its address."""
        return all(shell.addressed() for shell in self.shells.values())

    @cached_property
    def prompt(self) -> EmbeddingDelta | None:
        """Of its tasks, without vectors."""
        return next((shell for shell in self.shells.values() if isinstance(shell, EmbeddingDelta)), None)

    @cached_property
    def _begins(self) -> list[int]:
        return list(accumulate(self.sizes, initial=0))

    def place(self, key: str, name: str) -> int:
        """Where in a flat tensor the delta at this site has the tensor of this name."""
        return next(self._begins[place.piece] for place in self.layout[key] if place.name == name)

    def delta_at(self, key: str, rows: Rows, number: int) -> Delta | None:
        """The delta of all rows with the form of this number, with addresses for parameters; None where the form has none."""
        if (shell := self.shells.get(key)) is None:
            return None
        found = {name: At(rows, number, self._begins[piece], tuple(shape)) for name, piece, shape in self.layout[key]}
        return _with(shell, {**shell._parameters, **found})

    def share(self, name: str, value: Any) -> Any:
        """The value, or an equal one that another of its tasks has."""
        first = self.common.setdefault(name, value)
        return first if first == value else value

    def _place(self, *, apart: bool) -> None:
        for key, shell in self.shells.items():
            for name, parameter in shell.named_parameters():
                shape = parameter.shape[1:]
                if apart == (isinstance(shell, ProjectionDelta) and len(shape) == 2 and shape.numel() > SMALL):
                    self.layout[key].append(Place(name, len(self.sizes), shape))
                    self.sizes.append(shape.numel())
                    if spare := -shape.numel() % ALIGN:
                        self.sizes.append(spare)

    def pieces(self, flat: Tensor) -> Sequence[Tensor]:
        """Views of a flat tensor (size,), or of a stack of them (N, size), one for each of `sizes`."""
        return flat.split(self.sizes, -1)

    def near_pieces(self, near: Tensor) -> Sequence[Tensor]:
        """Views of the first `near_size` numbers of a flat tensor, or of a stack of them."""
        return near.split(self.sizes[: self.near], -1)

    def parts(self, flat: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """The first `near_size` numbers of a flat tensor, and a view for each piece behind them."""
        near, *apart = flat.split([self.near_size, *self.sizes[self.near :]])
        return near, apart

    def delta(
        self, key: str, near: Sequence[Tensor], apart: Callable[[int, torch.Size], Weight] | None = None
    ) -> Delta | None:
        """The delta of some tasks at a site, with views for parameters; None where the tasks have none there. near: from
        `near_pieces`; or from `pieces`, without `apart`: what stands for the tasks' matrices of a shape, from their number among
        the second ones of `parts`."""
        shell = self.shells.get(key)
        if shell is None:
            return None
        tensors: dict[str, Any] = dict(shell._parameters)  # those that are None stay so
        for name, piece, shape in self.layout[key]:
            if apart is None or piece < self.near:
                tensors[name] = near[piece].view(-1, *shape)
            else:
                tensors[name] = apart(piece - self.near, shape)
        return _with(shell, tensors)

    def pack(self, task: Task, dtype: torch.dtype) -> Tensor:
        """(size,): the task's tensors in their folded form, where they are, in the backbone's dtype, as each use casts them."""
        device = next((parameter.device for parameter in task.parameters()), torch.device("cpu"))
        flat = torch.zeros(sum(self.sizes), dtype=dtype, device=device)
        pieces, into, given = self.pieces(flat), [], []
        for key, places in self.layout.items():
            delta = task.delta(key)
            assert delta is not None
            tensors = dict(delta.fold().named_parameters())
            into += [pieces[piece] for _, piece, _ in places]
            given += [tensors[name].detach().flatten() for name, _, _ in places]
        if into:
            torch._foreach_copy_(into, given)  # a GPU gets some launches for all, and not one for each
        return flat

    def unpack(self, flat: Tensor, task: Task) -> Task:
        """The inverse of `pack`, into a copy of the light task."""
        whole = object.__new__(type(task))
        vars(whole).update(vars(task), _modules=dict(task._modules))
        whole.deltas = nn.ModuleDict()
        pieces = self.pieces(flat)
        for key, shell in self.shells.items():
            full = object.__new__(type(shell))
            # Hooks, buffers and the like are dictionaries of its own.
            full.__dict__.update({k: copy.copy(v) if isinstance(v, dict) else v for k, v in shell.__dict__.items()})
            for name, piece, shape in self.layout[key]:
                values = pieces[piece].view(1, *shape).to(torch.float32, copy=True)
                full._parameters[name] = nn.Parameter(values, requires_grad=False)
            whole.deltas[key.replace(".", ":")] = full
        return whole


def _with(shell: Delta, tensors: dict[str, Any]) -> Delta:
    """A delta with these for parameters. As copy.copy does, without the several microseconds of its protocol: there is one for each
    form, site and batch."""
    made = object.__new__(type(shell))
    made.__dict__.update(shell.__dict__)
    made.__dict__["_parameters"] = tensors
    return made


class Live:
    """A task in training, used as it is: gradients reach its own parameters."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.nbytes = 0
        """Of the bank's own memory: none."""


class Stored:
    """A frozen task in the bank's own memory. `task` is what is known of it besides its deltas' tensors."""

    __slots__ = ("flat", "form", "task")

    def __init__(self, task: Task, form: Form, flat: Tensor) -> None:
        self.form, self.flat = form, flat
        self.task = LightTask(task, form.share, form.modules)

    @property
    def nbytes(self) -> int:
        """Of the flat tensor, and of the head's."""
        head = self.task.head_module
        own = head.nbytes if isinstance(head, FrozenHead) else 0
        return self.flat.numel() * self.flat.element_size() + own

    @own_modes()
    def move(self, device: torch.device) -> None:
        """To the device, or from it."""
        flat, head = self.flat.to(device), self.task.head_module
        if isinstance(head, FrozenHead):
            head.flat = head.flat.to(device)
        self.flat = flat  # last, so that where memory is short both are where they were

    def whole(self) -> Task:
        """The task with its tensors, on the CPU."""
        task, head = object.__new__(Task), self.task.head_module
        nn.Module.__init__(task)
        vars(task).update(facts(self.task))
        task.deltas = self.form.unpack(self.flat.cpu(), self.task).deltas
        task.head_module = head.module() if isinstance(head, FrozenHead) else None
        return task.eval()
