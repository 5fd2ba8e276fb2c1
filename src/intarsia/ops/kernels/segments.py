"""Attention within short segments: one program for each segment and key-value head, forward and backward.

Kernels for long sequences split the keys of a sequence among programs, in blocks of 128, and add up the queries' gradients with
atomics. Rows of about 50 tokens fill a sixth of such a block. Here a program has a whole segment, in tiles of 64: no atomics, so
the same bits each time, and every number is read from memory once (again from the cache for the queries' gradients).

G segments, L queries, M keys, H heads, H_kv key-value heads, D width of a head.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from intarsia.ops.kernels.segments_backward import launch_backward
from intarsia.ops.kernels.tiles import LOG2E, TILE, constants, fold, put, rows_first, seen, tile

if TYPE_CHECKING:
    from intarsia.ops.addressed import Before

LONGEST = 256
"""Keys of a segment beyond which kernels for long sequences are the better ones."""


@triton.jit
def segments_forward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, starts_q, starts_k,
    q_row, q_head, k_row, k_head, v_row, v_head, out_row, out_head,
    scale, heads, groups, width, counts_ptr, anchor_ptr, offsets_ptr, forms_ptr, table_ptr,
    WIDTH: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, APART: tl.constexpr, PREFIX: tl.constexpr,
    Q_TILE: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    segment, head = tl.program_id(0), tl.program_id(1)
    q_first, k_first = tl.load(starts_q + segment), tl.load(starts_k + segment)
    queries = tl.load(starts_q + segment + 1) - q_first
    keys = tl.load(counts_ptr + segment) if APART else tl.load(starts_k + segment + 1) - k_first
    q_ptr += head * q_head
    k_ptr += head // groups * k_head
    v_ptr += head // groups * v_head
    if PREFIX:
        form = tl.load(forms_ptr + segment)
        before = tl.load(table_ptr + form * 3 + 2, mask=form >= 0, other=0)
        own_ptr = anchor_ptr + tl.multiple_of(tl.load(offsets_ptr + segment), 8) + head // groups * before * width
        own_k_ptr = own_ptr + tl.multiple_of(tl.load(table_ptr + form * 3, mask=form >= 0, other=0), 8)
        own_v_ptr = own_ptr + tl.multiple_of(tl.load(table_ptr + form * 3 + 1, mask=form >= 0, other=0), 8)
    for q_at in range(0, queries, Q_TILE):
        q = tile(q_ptr, q_first, q_at, q_row, queries, width, WIDTH, Q_TILE)
        top = tl.full([Q_TILE], -1e30, tl.float32)
        total = tl.zeros([Q_TILE], tl.float32)
        mixed = tl.zeros([Q_TILE, WIDTH], tl.float32)
        if PREFIX:  # seen by all queries
            for k_at in range(0, before, TILE):
                k = tile(own_k_ptr, 0, k_at, width, before, width, WIDTH, TILE)
                v = tile(own_v_ptr, 0, k_at, width, before, width, WIDTH, TILE)
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
                scores = tl.where((k_at + tl.arange(0, TILE) < before)[None, :], scores, -1e30)
                top, total, mixed = fold(scores, v, top, total, mixed, PRECISION)
        for k_at in range(0, keys, TILE):
            k = tile(k_ptr, k_first, k_at, k_row, keys, width, WIDTH, TILE)
            v = tile(v_ptr, k_first, k_at, v_row, keys, width, WIDTH, TILE)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            scores = tl.where(seen(q_at, k_at, queries, keys, CAUSAL, WINDOW, Q_TILE, TILE), scores, -1e30)
            top, total, mixed = fold(scores, v, top, total, mixed, PRECISION)
        put(out_ptr + head * out_head, q_first, q_at, out_row, queries, width, mixed / total[:, None], WIDTH, Q_TILE)
        index = q_at + tl.arange(0, Q_TILE)
        tl.store(lse_ptr + (q_first + index).to(tl.int64) * heads + head, top + tl.log2(total), mask=index < queries)


def _tiles(longest: int, constants: dict) -> dict:
    """What was quickest on an H100 (backward: tiles of 64, and no stages, whose memory keeps programs from running beside each
    other). For one query a segment, as texts that are written have, small tiles of keys are quicker, whatever their number."""
    constants |= {"Q_TILE": 16 if longest <= 16 else TILE, "TILE": 32}
    return {**constants, "TILE": 16, "num_warps": 1} if longest == 1 else constants


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    causal: bool,
    scale: float,
    window: int,
    before: "Before | None" = None,
    counts: Tensor | None = None,
    longest: int = TILE,
) -> tuple[Tensor, Tensor]:
    """As `short_segments`; before: what else each segment's queries see; counts: of its keys, which lie apart; longest: bound on a
    segment's queries."""
    q, k, v = rows_first(query, key, value)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    heads, groups = q.shape[1], q.shape[1] // k.shape[1]
    own = (starts_q if counts is None else counts, q, starts_q, starts_q, starts_q)
    if before is not None:
        own = (own[0], before.rows.anchor, before.rows.offsets, before.rows.forms, before.table)
    segments_forward[(len(starts_q) - 1, heads)](
        q, k, v, out, lse, starts_q, starts_k,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), out.stride(0), out.stride(1),
        scale * LOG2E, heads, groups, q.shape[2], *own, APART=counts is not None, PREFIX=before is not None,
        **_tiles(longest, constants(q, causal, window)),
    )  # fmt: skip
    return out, lse


@torch.library.custom_op("intarsia::short_segments", mutates_args=())
def short_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    causal: bool,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    """As `ops.segment_attention`; also the log2-sum-exp2 of each query's scores, (L, H) fp32."""
    return launch(query, key, value, starts_q, starts_k, causal, scale, window)


@short_segments.register_fake
def _(query, key, value, starts_q, starts_k, causal, scale, window):
    return query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=torch.float32)


@torch.library.custom_op("intarsia::short_segments_backward", mutates_args=())
def _short_segments_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, lse: Tensor, starts_q: Tensor, starts_k: Tensor,
    causal: bool, scale: float, window: int,
) -> Tensor:  # fmt: skip
    """The three gradients, in one tensor, as `_parts` has them."""
    flat = query.new_empty(query.numel() + 2 * key.numel())
    launch_backward(grad, query, key, value, lse, starts_q, starts_k, causal, scale, window, _parts(flat, query, key))
    return flat


@_short_segments_backward.register_fake
def _(grad, query, key, value, lse, starts_q, starts_k, causal, scale, window):
    return query.new_empty(query.numel() + 2 * key.numel())


def _parts(flat: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """Tensors like query, key and key: side by side for each token, as one product with the matrices of all three wants them; one
    behind the other where there are keys of no query (prefixes)."""
    if len(query) == len(key):
        return flat.view(len(query), -1, query.shape[2]).split([query.shape[1], key.shape[1], key.shape[1]], dim=1)
    parts = flat.split([query.numel(), key.numel(), key.numel()])
    return tuple(part.view(like.shape) for part, like in zip(parts, (query, key, key), strict=True))


def _keep(ctx, inputs, output) -> None:
    query, key, value, starts_q, starts_k, ctx.causal, ctx.scale, ctx.window = inputs
    ctx.set_materialize_grads(False)  # or there were zeros for the second output's
    # Not the attended values: what backward wants of them follows from the shares, which it computes anyway; and a frozen layer
    # behind them keeps nothing either, so their memory is free.
    ctx.save_for_backward(query, key, value, output[1], starts_q, starts_k)


def _derive(ctx, grad, _lse):
    query, key, value, lse, starts_q, starts_k = ctx.saved_tensors
    found = _short_segments_backward(
        grad, query, key, value, lse, starts_q, starts_k, ctx.causal, ctx.scale, ctx.window
    )
    return *_parts(found, query, key), None, None, None, None, None


torch.library.register_autograd("intarsia::short_segments", _derive, setup_context=_keep)
