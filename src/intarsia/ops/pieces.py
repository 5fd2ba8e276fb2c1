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

    flats: Sequence[Tensor]
    """(D_out * D_in,) each."""
    shape: torch.Size
    """D_out, D_in."""
    counts: Sequence[int]
    """How many rows each has, in order; a batch may have a multiple of their sum."""

    def shares(self, count: int) -> list[int]:
        """How many of `count` rows or tokens each matrix is for."""
        rows = sum(self.counts)
        if count % rows:
            raise RuntimeError(f"the pieces are of {rows} rows, and {count} do not divide among them")
        return [own * (count // rows) for own in self.counts]

    def matrices(self, dtype: torch.dtype) -> list[Tensor]:
        """(D_out, D_in) each."""
        return [flat.view(self.shape) for flat in self._cast(dtype)]

    def whole(self, dtype: torch.dtype) -> Tensor | None:
        """(sum of counts, D_out, D_in), each row's own, where one product for all is faster."""
        if sum(self.counts) > _FEW * len(self.counts) or self.shape[0] * self.shape[1] > _LARGE:
            return None
        return torch.stack(by_row(self._cast(dtype), self.counts)).view(-1, *self.shape)

    def _cast(self, dtype: torch.dtype) -> Sequence[Tensor]:
        same = self.flats[0].dtype == dtype  # asked once: there are as many as rows, at dozens of places
        return self.flats if same else [flat.to(dtype) for flat in self.flats]


def add_by_piece_(y: Tensor, x: Tensor, weight: Pieces, alpha: float) -> None:
    """y[i] += alpha weight[n] x[i], written into y.   y: (B * T, D_out), x: (B * T, D_in)."""
    sizes = weight.shares(len(x))
    if (whole := weight.whole(x.dtype)) is not None:
        y.view(len(whole), -1, y.shape[-1]).baddbmm_(x.view(len(whole), -1, x.shape[-1]), whole.mT, alpha=alpha)
        return
    for own, matrix, place in zip(x.split(sizes), weight.matrices(x.dtype), y.split(sizes), strict=True):
        place.addmm_(own, matrix.T, alpha=alpha)


def linear_by_piece(x: Tensor, weight: Pieces, bias: Tensor | None) -> Tensor:
    """out[i] = weight[n] x[i] + bias[i].   x: (B, T, D_in), bias: (sum of counts, D_out) or None. Returns (B, T, D_out)."""
    weight.shares(x.shape[0])
    flat, writes = x.reshape(-1, x.shape[-1]), weight.shape[0]
    sizes = weight.shares(len(flat))
    if (whole := weight.whole(x.dtype)) is not None:
        rows = flat.view(len(whole), -1, x.shape[-1])
        # Not a sum behind it: with a bias for each row torch goes through a bottleneck's few columns row by row.
        out = rows @ whole.mT if bias is None else torch.baddbmm(bias.to(x.dtype)[:, None], rows, whole.mT)
        return out.view(*x.shape[:-1], writes)
    if torch.is_grad_enabled() and x.requires_grad:
        parts = zip(flat.split(sizes), weight.matrices(x.dtype), strict=True)
        out = torch.cat([F.linear(own, matrix) for own, matrix in parts])
    else:
        out = x.new_empty(len(flat), writes)
        for own, matrix, place in zip(flat.split(sizes), weight.matrices(x.dtype), out.split(sizes), strict=True):
            torch.mm(own, matrix.T, out=place)
    if bias is not None:  # for all rows at once: one small addition for each piece costs as much as its product
        out.view(len(bias), -1, writes).add_(bias.to(x.dtype)[:, None])
    return out.view(*x.shape[:-1], writes)


def by_row(values: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """Each value as often as its task has rows."""
    return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
