"""Attention of padded rows whose tasks may have a prefix, which is read where it lies: one launch for all rows, whoever has one.

In plain torch rows with prefixes go apart, their keys and values are copied behind the prefix, their mask is made longer, and the
results are put together again: ten launches a layer, each longer to send than to run when a token is decoded.

B rows, H heads, H_kv key-value heads, T queries, S keys, D width of a head.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from intarsia.ops.addressed import Before
from intarsia.ops.kernels.tiles import LOG2E, fold, put, tile

_NONE, _BOOL, _ADDED = range(3)


@triton.jit(do_not_specialize=["queries", "keys", "each"])
def prefixed_forward(
    q_ptr, k_ptr, v_ptr, mask_ptr, out_ptr, anchor_ptr, offsets_ptr, forms_ptr, table_ptr,
    q_row, q_head, q_token, k_row, k_head, k_token, v_row, v_head, v_token, mask_row, mask_token, out_row, out_head, out_token,
    queries, keys, each, width, groups, scale,
    WIDTH: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, Q_TILE: tl.constexpr, K_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    row, head, q_at = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2) * Q_TILE
    own = row // each
    form = tl.load(forms_ptr + own)
    before = tl.load(table_ptr + form * 3 + 2, mask=form >= 0, other=0)
    own_ptr = anchor_ptr + tl.multiple_of(tl.load(offsets_ptr + own), 8) + head // groups * before * width
    own_k_ptr = own_ptr + tl.multiple_of(tl.load(table_ptr + form * 3, mask=form >= 0, other=0), 8)
    own_v_ptr = own_ptr + tl.multiple_of(tl.load(table_ptr + form * 3 + 1, mask=form >= 0, other=0), 8)
    k_ptr += row * k_row + head // groups * k_head
    v_ptr += row * v_row + head // groups * v_head
    index = q_at + tl.arange(0, Q_TILE)
    q = tile(q_ptr + row * q_row + head * q_head, 0, q_at, q_token, queries, width, WIDTH, Q_TILE)
    top = tl.full([Q_TILE], -1e30, tl.float32)
    total = tl.zeros([Q_TILE], tl.float32)
    mixed = tl.zeros([Q_TILE, WIDTH], tl.float32)
    for k_at in range(0, before, K_TILE):
        k = tile(own_k_ptr, 0, k_at, width, before, width, WIDTH, K_TILE)
        v = tile(own_v_ptr, 0, k_at, width, before, width, WIDTH, K_TILE)
        scores = tl.dot(q, tl.trans(k).to(q.dtype), input_precision=PRECISION) * scale
        scores = tl.where((k_at + tl.arange(0, K_TILE) < before)[None, :], scores, -1e30)
        top, total, mixed = fold(scores, v, top, total, mixed, PRECISION)
    for k_at in range(0, keys, K_TILE):
        k = tile(k_ptr, 0, k_at, k_token, keys, width, WIDTH, K_TILE)
        v = tile(v_ptr, 0, k_at, v_token, keys, width, WIDTH, K_TILE)
        scores = tl.dot(q, tl.trans(k).to(q.dtype), input_precision=PRECISION) * scale
        place = k_at + tl.arange(0, K_TILE)
        seen = (place < keys)[None, :] & (index < queries)[:, None]
        if CAUSAL:
            seen = seen & (place[None, :] <= index[:, None] + keys - queries)
        if MASK > 0:
            said = tl.load(
                mask_ptr + row * mask_row + index[:, None].to(tl.int64) * mask_token + place[None, :],
                mask=seen,
                other=0,
            )
            if MASK == 1:
                seen = seen & (said != 0)
            else:
                scores += said.to(tl.float32) * 1.4426950408889634
        top, total, mixed = fold(tl.where(seen, scores, -1e30), v, top, total, mixed, PRECISION)
    put(
        out_ptr + row * out_row + head * out_head,
        0,
        q_at,
        out_token,
        queries,
        width,
        mixed / total[:, None],
        WIDTH,
        Q_TILE,
    )


def prefixed(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, before: Before, causal: bool, scale: float
) -> Tensor:
    """As `ops.prefixed_attention`."""
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    rows, heads, queries, width = q.shape
    out = torch.empty(rows, queries, heads, width, dtype=q.dtype, device=q.device)
    kind, strides, said = _NONE, (0, 0), q
    if mask is not None:
        said = mask if mask.stride(3) == 1 else mask.contiguous()
        kind = _BOOL if said.dtype == torch.bool else _ADDED
        said = said.view(torch.uint8) if kind == _BOOL else said
        strides = tuple(0 if size == 1 else step for size, step in zip(said.shape, said.stride(), strict=True))[::2]
    known, full = before.rows, q.dtype == torch.float32
    q_tile = 16 if queries <= 16 else 64
    options: dict[str, Any] = {"num_warps": 4}
    prefixed_forward[(rows, heads, -(-queries // q_tile))](
        q, k, v, said, out, known.anchor, known.offsets, known.forms, before.table,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *strides, out.stride(0), out.stride(2), out.stride(1),
        queries, k.shape[2], rows // (len(known.forms) - 1), width, heads // k.shape[1], scale * LOG2E,
        WIDTH=max(16, triton.next_power_of_2(width)), CAUSAL=causal, MASK=kind, Q_TILE=q_tile, K_TILE=64,
        PRECISION="ieee" if full else "tf32", **options,
    )  # fmt: skip
    return out
