"""Residual sums that are left to the norm behind them in training, of packed rows on a GPU and on a CPU with AMX: of blocks that
are told their residual, as BERT's are (`norm(hidden_states + input_tensor)`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from intarsia.ops import Own, Summed, again, frozen_norm, leaves_sums, left_to_norm
from intarsia.sites import Site

ARGUMENTS = ["self", "hidden_states", "input_tensor"]
"""Of such a block's forward, in all of transformers' models; nobody does anything with the second but add it."""

Call = tuple[nn.Module, Callable[..., Any]]
"""A module, and what computes its output."""


def left_to_norms(base: nn.Module, norms: Sequence[tuple[Site, Any]]) -> list[Call]:
    """What the blocks and their norms compute instead.   norms: those that are what an ops.Own says"""
    found: list[Call] = []
    for site, norm in norms:
        block = base.get_submodule(site.module.rpartition(".")[0])
        own = type(block).forward
        if type(norm) is nn.LayerNorm and norms_a_sum(base, site):
            found += [(block, partial(_block, own.__get__(block))), (norm, partial(_norm, norm))]
    return found


def norms_a_sum(base: nn.Module, site: Site) -> bool:
    """Whether the norm at a site reads a residual sum that its block has made for it alone."""
    block = base.get_submodule(site.module.rpartition(".")[0])
    return list(inspect.signature(type(block).forward).parameters) == ARGUMENTS and "forward" not in vars(block)


def _block(own: Callable[..., Tensor], hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
    if not leaves_sums(input_tensor):
        return own(hidden_states, input_tensor)
    with left_to_norm():
        return own(hidden_states, Summed(again(input_tensor)))


def _norm(norm: nn.LayerNorm, x: Tensor | Summed) -> Tensor:
    return frozen_norm(x, Own(norm.weight, norm.bias, norm.eps, True))
