"""Products with matrices that lie apart, as a bank on a CPU holds them: each task's rows are a slice, its matrix is read in place.

Copying the matrices of a batch's tasks together would cost more than the products (a bottleneck's weights are as large as the
states of 60 tokens). Only the products are done piece by piece; what comes between them runs over all rows at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Pieces(NamedTuple):
    """Takes the place of a weight (N, D_out, D_in)."""

    matrices: Sequence[Tensor]
    """(D_out, D_in) each."""
    counts: Sequence[int]
    """How many rows each has, in order; a batch may have a multiple of their sum."""


def linear_by_piece(x: Tensor, weight: Pieces, bias: Tensor | None) -> Tensor:
    """out[i] = weight[n] x[i] + bias[i].   x: (B, T, D_in), bias: (sum of counts, D_out) or None. Returns (B, T, D_out)."""
    rows = sum(weight.counts)
    if x.shape[0] % rows:
        raise RuntimeError(f"the pieces are of {rows} rows, and {x.shape[0]} do not divide among them")
    flat, writes = x.reshape(-1, x.shape[-1]), weight.matrices[0].shape[0]
    each = len(flat) // rows
    sizes = [count * each for count in weight.counts]
    matrices = [matrix.to(x.dtype) for matrix in weight.matrices]
    if torch.is_grad_enabled() and x.requires_grad:
        out = torch.cat([F.linear(own, matrix) for own, matrix in zip(flat.split(sizes), matrices, strict=True)])
    else:
        out = x.new_empty(len(flat), writes)
        for own, matrix, place in zip(flat.split(sizes), matrices, out.split(sizes), strict=True):
            torch.mm(own, matrix.T, out=place)
    if bias is not None:  # for all rows at once: one small addition for each piece costs as much as its product
        out = (out.view(rows, each, writes) + bias.to(x.dtype)[:, None]).flatten(0, 1)
    return out.view(*x.shape[:-1], writes)
