"""The kernels of `ops.addressed`: every row finds its own task's tensors; rows of other forms, and nobody's tokens, are left alone.

G rows, L tokens in all, W width of what is read, D of what is written, M width of the bottleneck or the rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from intarsia.ops.kernels.narrow import ACTIVATIONS, activate, narrow_product
from intarsia.ops.kernels.norms import _normal

if TYPE_CHECKING:
    from intarsia.ops.addressed import At

_LINEAR = -1
"""No activation."""
_PART = 4
"""Rows of a lower matrix that one program multiplies with a single token."""


# Places are of any task's making: were they compiled for, as integers are, each form would want kernels of its own.
@triton.jit(do_not_specialize=["form", "each", "down", "down_bias", "up", "up_bias", "learned"])
def adapt_rows(x_ptr, y_ptr, anchor_ptr, offsets_ptr, forms_ptr, starts_ptr, form, each,
               x_row, y_row, reads, writes, narrow, down, down_bias, up, up_bias, learned, scale,
               KIND: tl.constexpr, BIAS: tl.constexpr, LEARNED: tl.constexpr, EQUAL: tl.constexpr, TILE: tl.constexpr,
               CHUNK: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    row, tile = tl.program_id(0), tl.program_id(1)
    if EQUAL:
        first, count = row * each, each
    else:
        first = tl.load(starts_ptr + row)
        count = tl.load(starts_ptr + row + 1) - first
    if (tl.load(forms_ptr + row) == form) & (tile * TILE < count):
        index, columns = tile * TILE + tl.arange(0, TILE), tl.arange(0, NARROW)
        inside, known = index < count, columns < narrow
        at = (first + index).to(tl.int64)
        own_ptr = anchor_ptr + tl.multiple_of(
            tl.load(offsets_ptr + row), 8
        )  # or matrices would be read number by number
        down, up = tl.multiple_of(down, 8), tl.multiple_of(up, 8)
        z = narrow_product(
            x_ptr, at, inside, own_ptr + down, columns, known, reads, x_row, 1, reads, TILE, CHUNK, NARROW, PRECISION
        )
        if BIAS:
            z += tl.load(own_ptr + down_bias + columns, mask=known, other=0.0).to(tl.float32)[None, :]
        z = z.to(y_ptr.dtype.element_ty)
        if KIND >= 0:
            inner, _ = activate(z.to(tl.float32), KIND)
            inner = tl.where(known[None, :], inner, 0.0).to(y_ptr.dtype.element_ty)
        else:
            inner = z
        factor = scale
        if LEARNED:
            factor *= tl.load(own_ptr + learned).to(tl.float32)
        tl.debug_barrier()  # x may be y: no warp writes before all have read their rows
        for begin in range(0, writes, CHUNK):
            w = begin + tl.arange(0, CHUNK)
            there = inside[:, None] & (w < writes)[None, :]
            weight = tl.load(
                own_ptr + up + w[None, :] * narrow + columns[:, None], mask=known[:, None] & (w < writes)[None, :], other=0.0
            )  # fmt: skip
            out = tl.dot(inner, weight.to(inner.dtype), input_precision=PRECISION)
            if BIAS:
                out += tl.load(own_ptr + up_bias + w, mask=w < writes, other=0.0).to(tl.float32)[None, :]
            place = y_ptr + at[:, None] * y_row + w[None, :]
            out = out * factor + tl.load(place, mask=there, other=0.0).to(tl.float32)
            tl.store(place, out.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _single(forms_ptr, starts_ptr, row, form, EQUAL: tl.constexpr):
    """Where the one token of a row is, and whether there is one, of this form."""
    at = row if EQUAL else tl.load(starts_ptr + row)
    mine = tl.load(forms_ptr + row) == form
    if not EQUAL:
        mine = mine & (tl.load(starts_ptr + row + 1) > at)
    return at, mine


# A row of one token, as texts that are written have them, would fill a sixteenth of a tile, and one program would read all of its
# task's matrices, one piece after the other. Here many read a part each, the lower matrix first.
@triton.jit(do_not_specialize=["form", "down", "down_bias"])
def narrow_tokens(x_ptr, z_ptr, anchor_ptr, offsets_ptr, forms_ptr, starts_ptr, form, x_row, reads, narrow, down, down_bias,
                  KIND: tl.constexpr, BIAS: tl.constexpr, EQUAL: tl.constexpr, PART: tl.constexpr,
                  CHUNK: tl.constexpr):  # fmt: skip
    row, columns = tl.program_id(0), tl.program_id(1) * PART + tl.arange(0, PART)
    at, mine = _single(forms_ptr, starts_ptr, row, form, EQUAL)
    if mine:
        known = columns < narrow
        own_ptr = anchor_ptr + tl.multiple_of(tl.load(offsets_ptr + row), 8)
        down = tl.multiple_of(down, 8)
        z = tl.zeros([PART], tl.float32)
        for begin in range(0, reads, CHUNK):
            w = begin + tl.arange(0, CHUNK)
            x = tl.load(x_ptr + at.to(tl.int64) * x_row + w, mask=w < reads, other=0.0).to(tl.float32)
            where = own_ptr + down + columns[:, None] * reads + w[None, :]
            weight = tl.load(where, mask=known[:, None] & (w < reads)[None, :], other=0.0).to(tl.float32)
            z += tl.sum(weight * x[None, :], 1)
        if BIAS:
            z += tl.load(own_ptr + down_bias + columns, mask=known, other=0.0).to(tl.float32)
        if KIND >= 0:
            z, _ = activate(z.to(z_ptr.dtype.element_ty).to(tl.float32), KIND)
        tl.store(z_ptr + at.to(tl.int64) * narrow + columns, z.to(z_ptr.dtype.element_ty), mask=known)


@triton.jit(do_not_specialize=["form", "up", "up_bias", "learned"])
def widen_tokens(z_ptr, y_ptr, anchor_ptr, offsets_ptr, forms_ptr, starts_ptr, form, y_row, writes, narrow, up, up_bias,
                 learned, scale, BIAS: tl.constexpr, LEARNED: tl.constexpr, EQUAL: tl.constexpr, PART: tl.constexpr,
                 NARROW: tl.constexpr):  # fmt: skip
    row, w = tl.program_id(0), tl.program_id(1) * PART + tl.arange(0, PART)
    at, mine = _single(forms_ptr, starts_ptr, row, form, EQUAL)
    if mine:
        columns, there = tl.arange(0, NARROW), w < writes
        own_ptr = anchor_ptr + tl.multiple_of(tl.load(offsets_ptr + row), 8)
        up = tl.multiple_of(up, 8)
        z = tl.load(z_ptr + at.to(tl.int64) * narrow + columns, mask=columns < narrow, other=0.0).to(tl.float32)
        where = own_ptr + up + w[:, None] * narrow + columns[None, :]
        weight = tl.load(where, mask=there[:, None] & (columns < narrow)[None, :], other=0.0).to(tl.float32)
        out = tl.sum(weight * z[None, :], 1)
        if BIAS:
            out += tl.load(own_ptr + up_bias + w, mask=there, other=0.0).to(tl.float32)
        factor = scale
        if LEARNED:
            factor *= tl.load(own_ptr + learned).to(tl.float32)
        place = y_ptr + at.to(tl.int64) * y_row + w
        out = out * factor + tl.load(place, mask=there, other=0.0).to(tl.float32)
        tl.store(place, out.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["form", "each", "gain", "bias", "count"])
def norm_rows(x_ptr, y_ptr, anchor_ptr, offsets_ptr, forms_ptr, owner_ptr, form, each, x_row, y_row, width, gain, bias, eps,
              frozen_gain_ptr, frozen_bias_ptr, count,
              CENTRE: tl.constexpr, GAIN: tl.constexpr, BIAS: tl.constexpr, EQUAL: tl.constexpr, WIDTH: tl.constexpr,
              WHOLE: tl.constexpr, FROZEN_BIAS: tl.constexpr, ALL: tl.constexpr):  # fmt: skip
    vector = tl.program_id(0).to(tl.int64)
    row = vector // each
    if not EQUAL:
        row = tl.load(owner_ptr + row)
    mine = tl.load(forms_ptr + row) == form
    if mine | (ALL & (row < count)):  # columns behind the last row hold anything
        own_ptr = anchor_ptr + tl.multiple_of(tl.load(offsets_ptr + row), 8)
        columns = tl.arange(0, WIDTH)
        inside = columns < width
        its = columns < tl.where(mine, width, 0)
        if GAIN:
            x = tl.load(x_ptr + vector * x_row + columns, mask=inside, other=0.0).to(tl.float32)
            normal, _ = _normal(x, inside, width, eps, CENTRE)
            factor = tl.load(own_ptr + gain + columns, mask=its, other=0.0).to(tl.float32)
        if WHOLE:
            out = normal * (factor + tl.load(frozen_gain_ptr + columns, mask=inside, other=0.0).to(tl.float32))
            if FROZEN_BIAS:
                out += tl.load(frozen_bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        else:
            out = tl.load(y_ptr + vector * y_row + columns, mask=inside, other=0.0).to(tl.float32)
            if GAIN:
                out += normal * factor
        if BIAS:
            out += tl.load(own_ptr + bias + columns, mask=its, other=0.0).to(tl.float32)
        tl.store(y_ptr + vector * y_row + columns, out.to(y_ptr.dtype.element_ty), mask=inside)


def _place(at: At | None) -> int:
    return 0 if at is None else at.place


def adapt(
    x: Tensor,
    y: Tensor,
    down: At,
    down_bias: At | None,
    up: At,
    up_bias: At | None,
    non_linearity: str | None,
    scale: float,
    learned: At | None,
) -> None:
    """As `ops.addressed.adapt_`; x: (L, W), y: (L, D), each row of numbers dense."""
    rows, (narrow, reads) = down.rows, down.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    full = x.dtype == torch.float32
    count, equal = len(rows.forms) - 1, rows.starts is None
    longest = len(y) // count if equal else rows.longest
    where = rows.anchor, rows.offsets, rows.forms, rows.forms if equal else rows.starts, down.form
    kind, more = (
        _LINEAR if non_linearity is None else ACTIVATIONS[non_linearity],
        {"BIAS": down_bias is not None, "EQUAL": equal},
    )
    if longest == 1:
        z, wide = torch.empty(len(y), narrow, dtype=y.dtype, device=y.device), triton.next_power_of_2(narrow)
        narrow_tokens[(count, -(-narrow // _PART))](
            x, z, *where, x.stride(0), reads, narrow, down.place, _place(down_bias), KIND=kind, **more, PART=_PART, CHUNK=1024,
        )  # fmt: skip
        part = max(16, min(256, 4096 // wide))
        widen_tokens[(count, -(-up.shape[0] // part))](
            z, y, *where, y.stride(0), up.shape[0], narrow, up.place, _place(up_bias), _place(learned), float(scale),
            LEARNED=learned is not None, **more, PART=part, NARROW=wide,
        )  # fmt: skip
        return
    shape = _tiles(count // rows.sorts, longest, narrow, full)
    adapt_rows[(count, -(-longest // shape["TILE"]))](
        x, y, *where, longest, x.stride(0), y.stride(0), reads, up.shape[0], narrow,
        down.place, _place(down_bias), up.place, _place(up_bias), _place(learned), float(scale),
        KIND=kind, LEARNED=learned is not None, **more, **shape,
        NARROW=max(16, triton.next_power_of_2(narrow)), PRECISION="ieee" if full else "tf32",
    )  # fmt: skip


def _tiles(count: int, longest: int, narrow: int, full: bool) -> dict[str, Any]:
    """What was quickest on an H100 with its 132 processors, adapters of width 48 and LoRA of rank 8 over 768 numbers: few rows want
    to be many programs. count: of the rows that have a form. (Wider tasks would not have room for chunks so large.)"""
    if longest <= 16:
        return {"TILE": 16, "CHUNK": 64 if full else 256, "num_warps": 4}
    tiles = count * -(-longest // 64)
    if tiles > 160 or (tiles > 32 and narrow > 64):
        return {"TILE": 32 if longest <= 32 else 64, "CHUNK": 64 if full else 128, "num_warps": 4}
    tile = 16 if tiles <= 32 else 32 if tiles <= 64 or longest <= 32 else 64
    return {"TILE": tile, "CHUNK": 64 if full else 256, "num_warps": 8, "num_stages": 2 if tile == 64 else 3}


def add_norms(
    x: Tensor,
    y: Tensor,
    gain: At | None,
    bias: At | None,
    eps: float,
    centre: bool,
    *,
    frozen: tuple[Tensor, Tensor | None] | None = None,
    others: bool = False,
) -> None:
    """As `ops.addressed.add_norms_` and `add_vectors_`; x, y: (L, D) or each token's heads, (L * H, D); each vector dense.

    frozen: gain and bias of the norm, which then is computed whole and written over y; others: also for rows of other forms or of
    none, which get the frozen one.
    """
    given = bias if gain is None else gain
    assert given is not None
    rows, width = given.rows, y.shape[1]
    x = x if x.stride(1) == 1 else x.contiguous()
    equal = rows.owner is None
    each = len(y) // (len(rows.forms) - 1) if equal else rows.inner(len(y))
    own_gain, own_bias = (rows.anchor, None) if frozen is None else frozen
    norm_rows[(len(y),)](
        x, y, rows.anchor, rows.offsets, rows.forms, rows.forms if equal else rows.owner, given.form, each,
        x.stride(0), y.stride(0), width,
        _place(gain), _place(bias), eps, own_gain, own_gain if own_bias is None else own_bias, len(rows.forms) - 1,
        CENTRE=centre, GAIN=gain is not None, BIAS=bias is not None, EQUAL=equal,
        WHOLE=frozen is not None, FROZEN_BIAS=own_bias is not None, ALL=others,
        WIDTH=triton.next_power_of_2(width), num_warps=4 if width <= 2048 else 8,
    )  # fmt: skip
