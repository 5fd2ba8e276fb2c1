"""What takes the place of nn.Linear's forward while a frozen trunk is trained through on a CPU with AMX."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.ops import Reordered, reordered, reordered_linear

SHARE = 0.1
"""Of the machine's memory, that the reordered weights of a backbone may take: twice the bytes of its linear layers."""


def wants_reordered(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether it pays: with AVX512-BF16 alone the products gain a twentieth, in fp32 none."""
    if dtype != torch.bfloat16 or device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


class FrozenLinear:
    """One layer's forward. The module stays, with its class, weight, hooks and state_dict. Where its weight is not the one that
    was frozen (a task's stand-in, a cast), it computes as before; where its numbers are others, the layouts are made anew."""

    def __init__(self, module: nn.Linear) -> None:
        self.module, self.frozen = module, module.weight
        self._kind = module.weight.dtype, module.weight.device
        self._layouts: Reordered | None = None
        self._made_of: tuple[Tensor, int] | None = None
        """The numbers, kept so that no others can have their place in memory, and how often they had been changed."""
        module.__dict__["forward"] = self  # past nn.Module's own __setattr__

    def __call__(self, input: Tensor) -> Tensor:
        """y"""
        weight, bias = self.module.weight, self.module.bias
        other = weight is not self.frozen or (weight.dtype, weight.device) != self._kind or input.dtype != weight.dtype
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        # Without gradients shapes seldom come back, and the first product of each shape is slower with these layouts.
        if other or trained or not torch.is_grad_enabled():
            return F.linear(input, weight, bias)
        return reordered_linear(input, self._of(weight), bias)

    def _of(self, weight: Tensor) -> Reordered:
        of = self._made_of
        if self._layouts is None or of is None or of[0].data_ptr() != weight.data_ptr() or of[1] != weight._version:
            self._layouts, self._made_of = reordered(weight), (weight.detach(), weight._version)
        return self._layouts


def reorder(base: nn.Module) -> list[FrozenLinear]:
    """Every linear layer of a trunk whose weights are plain numbers (not int8's), unless two more copies of them would be too much
    for this machine."""
    linear = [module for module in base.modules() if type(module) is nn.Linear]
    layers = [module for module in linear if type(module.weight) is nn.Parameter]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    if 2 * sum(layer.weight.nbytes for layer in layers) > SHARE * memory:
        return []
    return [FrozenLinear(layer) for layer in layers]
