"""The gradients of attention within short segments: one program for each segment and key-value head, as `segments` has forward.

Segments of up to WIDE keys take these as one tile, which each tile of queries meets once. Longer ones are gone over three times.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from intarsia.ops.kernels.tiles import LOG2E, TILE, constants, put, rows_first, seen, tile

_WIDE, _NARROW = 2 * TILE, 32
"""Keys that are still one tile, and queries of a tile that meets them: with 64 columns of half precision a program's registers hold
their gradients."""


@triton.jit
def _shares(
    q, k, lse_ptr, q_first, q_at, k_at, queries, keys, head, heads, scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, Q_TILE: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(Q_TILE, TILE) attention of a tile of queries to a tile of keys, once more."""
    index = q_at + tl.arange(0, Q_TILE)
    lse = tl.load(lse_ptr + (q_first + index).to(tl.int64) * heads + head, mask=index < queries, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    both = seen(q_at, k_at, queries, keys, CAUSAL, WINDOW, Q_TILE, TILE)
    return tl.where(both, tl.exp2(tl.where(both, scores - lse[:, None], 0.0)), 0.0)


@triton.jit
def _one_tile(
    q_ptr, k_ptr, v_ptr, lse_ptr, grad_ptr, dq_ptr, dk_ptr, dv_ptr, q_first, k_first, queries, keys, first, last,
    q_row, q_head, k_row, v_row, grad_row, grad_head, dq_row, dq_head, dk_row, scale, natural, heads, width,
    WIDTH: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, Q_TILE: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    k = tile(k_ptr, k_first, 0, k_row, keys, width, WIDTH, TILE)
    v = tile(v_ptr, k_first, 0, v_row, keys, width, WIDTH, TILE)
    dk = tl.zeros([TILE, WIDTH], tl.float32)
    dv = tl.zeros([TILE, WIDTH], tl.float32)
    for head in range(first, last):
        for q_at in range(0, queries, Q_TILE):
            q = tile(q_ptr + head * q_head, q_first, q_at, q_row, queries, width, WIDTH, Q_TILE)
            grad = tile(grad_ptr + head * grad_head, q_first, q_at, grad_row, queries, width, WIDTH, Q_TILE)
            p = _shares(
                q, k, lse_ptr, q_first, q_at, 0, queries, keys, head, heads, scale, CAUSAL, WINDOW, Q_TILE, TILE, PRECISION
            )  # fmt: skip
            dv = tl.dot(tl.trans(p.to(grad.dtype)), grad, dv, input_precision=PRECISION)
            dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
            ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * natural).to(q.dtype)
            dk = tl.dot(tl.trans(ds), q, dk, input_precision=PRECISION)
            dq = tl.dot(ds, k, input_precision=PRECISION)
            put(dq_ptr + head * dq_head, q_first, q_at, dq_row, queries, width, dq, WIDTH, Q_TILE)
    put(dk_ptr, k_first, 0, dk_row, keys, width, dk, WIDTH, TILE)
    put(dv_ptr, k_first, 0, dk_row, keys, width, dv, WIDTH, TILE)


@triton.jit
def segments_backward(
    q_ptr, k_ptr, v_ptr, lse_ptr, grad_ptr, dq_ptr, dk_ptr, dv_ptr, delta_ptr, starts_q, starts_k,
    q_row, q_head, k_row, k_head, v_row, v_head, grad_row, grad_head,
    dq_row, dq_head, dk_row, dk_head,
    scale, natural, heads, groups, width,
    WIDTH: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
    NARROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    segment, group = tl.program_id(0), tl.program_id(1)
    q_first, k_first = tl.load(starts_q + segment), tl.load(starts_k + segment)
    queries, keys = tl.load(starts_q + segment + 1) - q_first, tl.load(starts_k + segment + 1) - k_first
    k_ptr += group * k_head
    v_ptr += group * v_head
    dk_ptr += group * dk_head
    dv_ptr += group * dk_head
    first, last = group * groups, (group + 1) * groups
    if keys <= TILE:
        _one_tile(
            q_ptr, k_ptr, v_ptr, lse_ptr, grad_ptr, dq_ptr, dk_ptr, dv_ptr, q_first, k_first, queries, keys, first, last,
            q_row, q_head, k_row, v_row, grad_row, grad_head, dq_row, dq_head, dk_row, scale, natural, heads, width,
            WIDTH, CAUSAL, WINDOW, TILE, TILE, PRECISION,
        )  # fmt: skip
        return
    if WIDE > TILE:  # noqa: SIM102 - a constant: where it is not so, there is no second kind of tile
        if keys <= WIDE:
            _one_tile(
                q_ptr, k_ptr, v_ptr, lse_ptr, grad_ptr, dq_ptr, dk_ptr, dv_ptr, q_first, k_first, queries, keys, first, last,
                q_row, q_head, k_row, v_row, grad_row, grad_head, dq_row, dq_head, dk_row, scale, natural, heads, width,
                WIDTH, CAUSAL, WINDOW, NARROW, WIDE, PRECISION,
            )  # fmt: skip
            return
    for head in range(first, last):
        for q_at in range(0, queries, TILE):
            q = tile(q_ptr + head * q_head, q_first, q_at, q_row, queries, width, WIDTH, TILE)
            grad = tile(grad_ptr + head * grad_head, q_first, q_at, grad_row, queries, width, WIDTH, TILE)
            delta = tl.zeros([TILE], tl.float32)
            for k_at in range(0, keys, TILE):
                k = tile(k_ptr, k_first, k_at, k_row, keys, width, WIDTH, TILE)
                v = tile(v_ptr, k_first, k_at, v_row, keys, width, WIDTH, TILE)
                p = _shares(
                    q, k, lse_ptr, q_first, q_at, k_at, queries, keys, head, heads, scale, CAUSAL, WINDOW, TILE, TILE, PRECISION
                )  # fmt: skip
                delta += tl.sum(p * tl.dot(grad, tl.trans(v), input_precision=PRECISION), 1)
            index = q_at + tl.arange(0, TILE)
            tl.store(delta_ptr + (q_first + index).to(tl.int64) * heads + head, delta, mask=index < queries)
            dq = tl.zeros([TILE, WIDTH], tl.float32)
            for k_at in range(0, keys, TILE):
                k = tile(k_ptr, k_first, k_at, k_row, keys, width, WIDTH, TILE)
                v = tile(v_ptr, k_first, k_at, v_row, keys, width, WIDTH, TILE)
                p = _shares(
                    q, k, lse_ptr, q_first, q_at, k_at, queries, keys, head, heads, scale, CAUSAL, WINDOW, TILE, TILE, PRECISION
                )  # fmt: skip
                ds = p * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None]) * natural
                dq += tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
            put(dq_ptr + head * dq_head, q_first, q_at, dq_row, queries, width, dq, WIDTH, TILE)
    tl.debug_barrier()  # all of this program's deltas are written
    for k_at in range(0, keys, TILE):
        k = tile(k_ptr, k_first, k_at, k_row, keys, width, WIDTH, TILE)
        v = tile(v_ptr, k_first, k_at, v_row, keys, width, WIDTH, TILE)
        dk = tl.zeros([TILE, WIDTH], tl.float32)
        dv = tl.zeros([TILE, WIDTH], tl.float32)
        for head in range(first, last):
            for q_at in range(0, queries, TILE):
                q = tile(q_ptr + head * q_head, q_first, q_at, q_row, queries, width, WIDTH, TILE)
                grad = tile(grad_ptr + head * grad_head, q_first, q_at, grad_row, queries, width, WIDTH, TILE)
                index = q_at + tl.arange(0, TILE)
                where = delta_ptr + (q_first + index).to(tl.int64) * heads + head
                delta = tl.load(where, mask=index < queries, other=0.0)
                p = _shares(
                    q, k, lse_ptr, q_first, q_at, k_at, queries, keys, head, heads, scale, CAUSAL, WINDOW, TILE, TILE, PRECISION
                )  # fmt: skip
                dv += tl.dot(tl.trans(p.to(grad.dtype)), grad, input_precision=PRECISION)
                ds = p * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None]) * natural
                dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISION)
        put(dk_ptr, k_first, k_at, dk_row, keys, width, dk, WIDTH, TILE)
        put(dv_ptr, k_first, k_at, dk_row, keys, width, dv, WIDTH, TILE)


def launch_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    causal: bool,
    scale: float,
    window: int,
    into: Sequence[Tensor],
) -> None:
    """into <- the gradients of query, key and value; lse: as `segments.short_segments` has it."""
    g, q, k, v = rows_first(grad, query, key, value)
    dq, dk, dv = into
    options, groups = constants(q, causal, window), q.shape[1] // k.shape[1]
    wide = _WIDE if options["WIDTH"] <= TILE and q.dtype != torch.float32 else TILE
    segments_backward[(len(starts_q) - 1, k.shape[1])](
        q, k, v, lse, g, dq, dk, dv, torch.empty_like(lse), starts_q, starts_k,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        g.stride(0), g.stride(1), dq.stride(0), dq.stride(1), dk.stride(0), dk.stride(1),
        scale * LOG2E, scale, q.shape[1], groups, q.shape[2], WIDE=wide, NARROW=_NARROW, num_stages=1, **options,
    )  # fmt: skip
