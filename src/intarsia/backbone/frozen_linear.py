"""What takes the place of nn.Linear's forward in a frozen trunk: the layers that read the same states in one product (`joined`, for
packed rows), and on a CPU with AMX all of them by a kernel of ours (`paneled`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.ops import Panels, frozen_linear, takes_panels
from intarsia.sites import Role, Site

SHARE = 0.1
"""Of the machine's memory, that the panels of a backbone may take, at twice the bytes of its linear layers (once for a server,
which never trains)."""

Call = tuple[nn.Module, Callable[[Tensor], Tensor]]
"""A module, and what computes its output."""


class FrozenLinear:
    """Layers that read the same states. The first of them that is called with some has the others' outputs, too, which wait for
    their calls with these states.

    The modules stay, with their classes, weights, hooks and state_dicts. One whose weight or bias is not the one that was frozen
    (a task's stand-in, a cast, somebody's training) computes as before; where the numbers are others, they are read anew.
    """

    def __init__(self, modules: Sequence[nn.Linear], *, panels: bool) -> None:
        """panels: the weights are copied into Panels. Otherwise they become rows of one matrix, and share its memory, and
        the biases parts of one."""
        self.modules, self.panels = list(modules), panels
        self.calls: list[Call] = [(module, _Call(self, index)) for index, module in enumerate(modules)]
        self._weights = [module.weight for module in modules]
        self._biases = [module.bias for module in modules]
        self._tensors = [*self._weights, *(bias for bias in self._biases if bias is not None)]
        self._kind = self._weights[0].dtype, self._weights[0].device
        self._sizes = [module.out_features for module in modules]
        self._whole: Tensor | Panels | None = None
        self._bias: Tensor | None = None
        self._made_of: list[tuple[Tensor, int]] = []
        """The numbers, kept so that no others can have their place in memory, and how often they had been changed."""
        self._input: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    def output(self, index: int, x: Tensor) -> Tensor:
        """Of one of the modules.   x: (..., N)"""
        weight, bias = self.modules[index].weight, self.modules[index].bias
        other = weight is not self._weights[index] or bias is not self._biases[index] or x.dtype != weight.dtype
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        if other or trained or (weight.dtype, weight.device) != self._kind or torch.compiler.is_compiling():
            self._taken(index)  # whatever waits for this call is not wanted
            return F.linear(x, weight, bias)
        if x is not self._input or index not in self._waiting:
            # What waits is let go first: it was of other states.
            self._waiting, self._input = {}, x
            self._waiting = dict(enumerate(self._outputs(x)))
        return self._taken(index)  # type: ignore[return-value]

    def _taken(self, index: int) -> Tensor | None:
        found = self._waiting.pop(index, None)
        if not self._waiting:
            self._input = None
        return found

    def _outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        if not self._made_of:
            self._read()
        for tensor, (numbers, version) in zip(self._tensors, self._made_of, strict=True):
            if tensor.data_ptr() != numbers.data_ptr() or (self.panels and tensor._version != version):
                self._read()
                break
        assert self._whole is not None
        return frozen_linear(x, self._whole, self._bias, self._sizes)

    def _read(self) -> None:
        # A server's first pass is in inference mode, and what is made in it could never be trained through.
        with torch.inference_mode(False), torch.no_grad():
            biases = [bias for bias in self._biases if bias is not None]
            self._bias = _one(biases) if biases else None
            if self.panels:
                self._whole = Panels(self._weights)
            else:  # a change in place is then one of the whole, which graphs may read where it lies
                self._whole = _one(self._weights)
                for tensor, rows in zip(self._weights, self._whole.split(self._sizes), strict=True):
                    tensor.data = rows
                for tensor, rows in zip(
                    biases, () if self._bias is None else self._bias.split(self._sizes), strict=True
                ):
                    tensor.data = rows
            self._made_of = [(tensor.detach(), tensor._version) for tensor in self._tensors]


def _one(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0].detach()


class _Call:
    """A module's forward."""

    def __init__(self, layers: FrozenLinear, index: int) -> None:
        self.layers, self.index = layers, index

    def __call__(self, input: Tensor) -> Tensor:
        """y"""
        return self.layers.output(self.index, input)


def joined(base: nn.Module, sites: Sequence[Site]) -> list[FrozenLinear]:
    """Queries, keys and values of each self-attention that has a projection for each."""
    return [FrozenLinear(modules, panels=False) for modules in _together(base, sites)]


def paneled(base: nn.Module, sites: Sequence[Site]) -> list[FrozenLinear]:
    """The linear layers of a trunk whose weights are plain numbers (not int8's) that the kernel takes, from now on; none where two
    copies of them would be too much for this machine."""
    fit = [module for module in base.modules() if _is_plain(module) and takes_panels([module.weight])]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    if 2 * sum(layer.weight.nbytes for layer in fit) > SHARE * memory:
        return []
    groups = [modules for modules in _together(base, sites) if set(modules) <= set(fit)]
    grouped = {module for modules in groups for module in modules}
    groups += [[module] for module in fit if module not in grouped]
    found = [FrozenLinear(modules, panels=True) for modules in groups]
    for module, call in (pair for layers in found for pair in layers.calls):
        module.__dict__["forward"] = call  # past nn.Module's own __setattr__
    return found


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear and type(module.weight) is nn.Parameter


def _together(base: nn.Module, sites: Sequence[Site]) -> list[list[nn.Linear]]:
    groups: dict[tuple[str, int], list[nn.Linear]] = {}
    for site in sites:
        if site.role in (Role.Q, Role.K, Role.V) and site.part is None and not site.cross:
            groups.setdefault((site.stack, site.layer), []).append(base.get_submodule(site.module))  # type: ignore[arg-type]
    return [modules for modules in groups.values() if _fit(modules)]


def _fit(modules: Sequence[nn.Linear]) -> bool:
    first = modules[0]
    return len(set(modules)) > 1 and all(
        _is_plain(module)
        and module.in_features == first.in_features
        and (module.bias is None) == (first.bias is None)
        and (module.weight.dtype, module.weight.device) == (first.weight.dtype, first.weight.device)
        for module in modules
    )
