"""Matrices of several tasks, each in its own task's memory: what a CPU does with them. (A GPU: `addressed`.)

Where tasks have many rows each, their rows are slices with a product of their own. Where they have one or two, those products are
too small to be worth their calls, so the matrices of one place are brought together and multiplied in one call; the copy is small
enough to stay in the cache until then, which a copy of all places' matrices would not be.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ALIGN = 8
"""Tensors begin at multiples of so many numbers in a flat one: 16 bytes in half precision, as matrix units want."""

_FEW, _LARGE = 2, 2**16
"""Up to so many rows a task, and numbers a matrix, one product for all is faster (tried on two cores: fp32 and bf16, widths of 384
to 2,048, rows of 1 to 128 tokens)."""


class Pieces(NamedTuple):
    """Takes the place of a weight (N, D_out, D_in)."""

    matrices: Sequence[Tensor]
    """(D_out, D_in) each."""
    counts: Sequence[int]
    """How many rows each has, in order; a batch may have a multiple of their sum."""

    def shares(self, count: int) -> list[int]:
        """How many of `count` rows or tokens each matrix is for."""
        rows = sum(self.counts)
        if count % rows:
            raise RuntimeError(f"the pieces are of {rows} rows, and {count} do not divide among them")
        return [own * (count // rows) for own in self.counts]


def add_by_piece_(y: Tensor, x: Tensor, weight: Pieces, alpha: float) -> None:
    """y[i] += alpha weight[n] x[i], written into y.   y: (B * T, D_out), x: (B * T, D_in)."""
    sizes, matrices = weight.shares(len(x)), _cast(weight, x.dtype)
    if _together(weight):
        whole = torch.stack(by_row(matrices, weight.counts))
        y.view(len(whole), -1, y.shape[-1]).baddbmm_(x.view(len(whole), -1, x.shape[-1]), whole.mT, alpha=alpha)
        return
    for own, matrix, place in zip(x.split(sizes), matrices, y.split(sizes), strict=True):
        place.addmm_(own, matrix.T, alpha=alpha)


def linear_by_piece(x: Tensor, weight: Pieces, bias: Tensor | None) -> Tensor:
    """out[i] = weight[n] x[i] + bias[i].   x: (B, T, D_in), bias: (sum of counts, D_out) or None. Returns (B, T, D_out)."""
    weight.shares(x.shape[0])
    flat, writes = x.reshape(-1, x.shape[-1]), weight.matrices[0].shape[0]
    sizes, matrices = weight.shares(len(flat)), _cast(weight, x.dtype)
    if _together(weight):
        whole = torch.stack(by_row(matrices, weight.counts))
        out = (flat.view(len(whole), -1, x.shape[-1]) @ whole.mT).flatten(0, 1)
    elif torch.is_grad_enabled() and x.requires_grad:
        out = torch.cat([F.linear(own, matrix) for own, matrix in zip(flat.split(sizes), matrices, strict=True)])
    else:
        out = x.new_empty(len(flat), writes)
        for own, matrix, place in zip(flat.split(sizes), matrices, out.split(sizes), strict=True):
            torch.mm(own, matrix.T, out=place)
    if bias is not None:  # for all rows at once: one small addition for each piece costs as much as its product
        out = (out.view(len(bias), -1, writes) + bias.to(x.dtype)[:, None]).flatten(0, 1)
    return out.view(*x.shape[:-1], writes)


def _together(weight: Pieces) -> bool:
    """Whether one product for all is faster."""
    return sum(weight.counts) <= _FEW * len(weight.counts) and weight.matrices[0].numel() <= _LARGE


def _cast(weight: Pieces, dtype: torch.dtype) -> Sequence[Tensor]:
    same = weight.matrices[0].dtype == dtype  # asked once: there are as many matrices as rows, at dozens of places
    return weight.matrices if same else [matrix.to(dtype) for matrix in weight.matrices]


def by_row(values: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """Each value as often as its task has rows."""
    return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
