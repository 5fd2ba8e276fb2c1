"""Matrices of several tasks that are read where they lie, each in its own task's memory.

Copying the matrices of a batch's tasks together would cost more than the products (a bottleneck's weights are as large as the
states of 60 tokens). On a CPU each task's rows are a slice, and only the products are done piece by piece; what comes between
them runs over all rows at once. (On a GPU, `addressed`.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ALIGN = 8
"""Tensors begin at multiples of so many numbers in a flat one: 16 bytes in half precision, as matrix units want."""


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
    sizes = weight.shares(len(x))
    for own, matrix, place in zip(x.split(sizes), weight.matrices, y.split(sizes), strict=True):
        place.addmm_(own, matrix.to(x.dtype).T, alpha=alpha)


def linear_by_piece(x: Tensor, weight: Pieces, bias: Tensor | None) -> Tensor:
    """out[i] = weight[n] x[i] + bias[i].   x: (B, T, D_in), bias: (sum of counts, D_out) or None. Returns (B, T, D_out)."""
    weight.shares(x.shape[0])
    flat, writes = x.reshape(-1, x.shape[-1]), weight.matrices[0].shape[0]
    sizes = weight.shares(len(flat))
    matrices = [matrix.to(x.dtype) for matrix in weight.matrices]
    if torch.is_grad_enabled() and x.requires_grad:
        out = torch.cat([F.linear(own, matrix) for own, matrix in zip(flat.split(sizes), matrices, strict=True)])
    else:
        out = x.new_empty(len(flat), writes)
        for own, matrix, place in zip(flat.split(sizes), matrices, out.split(sizes), strict=True):
            torch.mm(own, matrix.T, out=place)
    if bias is not None:  # for all rows at once: one small addition for each piece costs as much as its product
        out = (out.view(len(bias), -1, writes) + bias.to(x.dtype)[:, None]).flatten(0, 1)
    return out.view(*x.shape[:-1], writes)
