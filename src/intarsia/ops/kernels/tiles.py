"""Tiles of queries and keys, and what kernels of attention do with them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64


@triton.jit
def tile(base, first, rows, stride, count, width, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """(TILE, WIDTH) numbers of rows `first + rows`, zeros beyond `count` rows and `width` columns."""
    index, columns = rows + tl.arange(0, TILE), tl.arange(0, WIDTH)
    inside = (index < count)[:, None] & (columns < width)[None, :]
    return tl.load(base + (first + index).to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def put(base, first, rows, stride, count, width, values, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """The inverse of `tile`."""
    index, columns = rows + tl.arange(0, TILE), tl.arange(0, WIDTH)
    inside = (index < count)[:, None] & (columns < width)[None, :]
    where = base + (first + index).to(tl.int64)[:, None] * stride + columns[None, :]
    tl.store(where, values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def seen(
    q_at, k_at, queries, keys, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, Q_TILE: tl.constexpr, TILE: tl.constexpr
):
    """(Q_TILE, TILE): which keys each query sees; places are counted from the segment's end, where keys and queries meet."""
    behind_q = queries - 1 - (q_at + tl.arange(0, Q_TILE))[:, None]
    behind_k = keys - 1 - (k_at + tl.arange(0, TILE))[None, :]
    both = (behind_k >= 0) & (behind_q >= 0)
    if CAUSAL:
        both = both & (behind_k >= behind_q)
    if WINDOW > 0:
        both = both & (behind_k < behind_q + WINDOW)
    return both


@triton.jit
def fold(scores, v, top, total, mixed, PRECISION: tl.constexpr):
    """A tile of keys more: the highest score, the sum of the shares and of the values, all by the highest score so far."""
    higher = tl.maximum(top, tl.max(scores, 1))
    shares = tl.exp2(scores - higher[:, None])
    fade = tl.exp2(top - higher)
    mixed = mixed * fade[:, None] + tl.dot(shares.to(v.dtype), v, input_precision=PRECISION)
    return higher, total * fade + tl.sum(shares, 1), mixed


LOG2E = 1.4426950408889634


def constants(query: Tensor, causal: bool, window: int) -> dict:
    return {
        "WIDTH": max(16, triton.next_power_of_2(query.shape[2])),
        "CAUSAL": causal,
        "WINDOW": window,
        "TILE": TILE,
        # fp32 in full: TF32 keeps three digits.
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
        "num_warps": 4,
    }


def rows_first(*tensors: Tensor) -> list[Tensor]:
    """(L, H, D) tensors whose last axis is dense."""
    return [x if x.stride(2) == 1 else x.contiguous() for x in tensors]
