"""The gradients of a bottleneck with its residual, as `bottleneck` has it forward. Those of U, D, b and c are sums over all rows of
a task: a kernel of their own has them all, in parts that are added up afterwards.

N tasks, T rows in all (T / N a task), W width of the states, M width of the bottleneck.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from intarsia.ops.kernels.narrow import PROGRAMS, activate, dense, narrow_product, options, tile_of
from intarsia.ops.kernels.sums import add_up

_STRIPE, _STEP = 64, 64
"""For so many columns of the states a program adds up the weights' gradients, in steps of so many rows (the quickest of 32, 64
and 128 each on an H100, with 8 tasks of 1,700 rows)."""


@triton.jit
def bottleneck_backward(grad_ptr, down_ptr, up_ptr, z_ptr, dy_ptr, dz_ptr, inner_ptr, rows, width, narrow,
              down_task, up_task,
              KIND: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, NARROW: tl.constexpr,
              PRECISION: tl.constexpr):  # fmt: skip
    """dy; and for the weights' gradients dz and the inner activation, NARROW columns each: the first spare one holds ones."""
    tile, task = tl.program_id(0), tl.program_id(1)
    index, columns = tile * TILE + tl.arange(0, TILE), tl.arange(0, NARROW)
    inside, known = index < rows, columns < narrow
    at = (task * rows + index).to(tl.int64)
    both = inside[:, None] & known[None, :]
    slots = at[:, None] * NARROW + columns[None, :]
    z = tl.load(z_ptr + at[:, None] * narrow + columns[None, :], mask=both, other=0.0)
    inner, slope = activate(z.to(tl.float32), KIND)
    inner = tl.where(known[None, :], inner, tl.where(columns == narrow, 1.0, 0.0)[None, :])
    tl.store(inner_ptr + slots, inner.to(inner_ptr.dtype.element_ty), mask=inside[:, None])
    dz = slope * narrow_product(
        grad_ptr, at, inside, up_ptr + task * up_task, columns, known, width, width, narrow, 1, TILE, CHUNK, NARROW, PRECISION
    )  # fmt: skip
    dz = tl.where(both, dz, 0.0).to(dz_ptr.dtype.element_ty)
    tl.store(dz_ptr + slots, dz, mask=inside[:, None])
    for begin in range(0, width, CHUNK):
        w = begin + tl.arange(0, CHUNK)
        there = inside[:, None] & (w < width)[None, :]
        grad = tl.load(grad_ptr + at[:, None] * width + w[None, :], mask=there, other=0.0).to(tl.float32)
        down = tl.load(
            down_ptr + task * down_task + columns[:, None] * width + w[None, :],
            mask=known[:, None] & (w < width)[None, :], other=0.0,
        )  # fmt: skip
        dy = grad + tl.dot(dz, down.to(dz.dtype), input_precision=PRECISION)
        tl.store(dy_ptr + at[:, None] * width + w[None, :], dy.to(dy_ptr.dtype.element_ty), mask=there)


@triton.jit
def bottleneck_weights(y_ptr, grad_ptr, dz_ptr, inner_ptr, matrices_ptr, vectors_ptr, rows, parts, own, width, narrow,
              matrices_row, vectors_row,
              STRIPE: tl.constexpr, TILE: tl.constexpr, NARROW: tl.constexpr, ONES: tl.constexpr,
              PRECISION: tl.constexpr):  # fmt: skip
    """Of one part of a task's rows (`own` of them): dD (M, W) and dU (W, M), and dc (W) and db (M), one behind the other.

    ONES: the inner activation's column of ones makes the sums over rows, dc and db, a row and a column of products: a sum beside
    them took half as long again as they do.
    """
    stripe, part, task = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    w, columns = stripe * STRIPE + tl.arange(0, STRIPE), tl.arange(0, NARROW)
    there, known = w < width, columns < narrow
    ddown, dup = tl.zeros([NARROW, STRIPE], tl.float32), tl.zeros([NARROW, STRIPE], tl.float32)
    dc, db = tl.zeros([STRIPE], tl.float32), tl.zeros([NARROW], tl.float32)
    both_sums = tl.zeros([NARROW, NARROW], tl.float32)
    end = min((part + 1) * own, rows)
    for first in range(part * own, end, TILE):
        index = first + tl.arange(0, TILE)
        inside = index < end
        at = (task * rows + index).to(tl.int64)
        states = at[:, None] * width + w[None, :]
        y = tl.load(y_ptr + states, mask=inside[:, None] & there[None, :], other=0.0)
        grad = tl.load(grad_ptr + states, mask=inside[:, None] & there[None, :], other=0.0)
        slots = at[:, None] * NARROW + columns[None, :]
        dz = tl.load(dz_ptr + slots, mask=inside[:, None], other=0.0)
        inner = tl.load(inner_ptr + slots, mask=inside[:, None], other=0.0)
        ddown = tl.dot(tl.trans(dz), y, ddown, input_precision=PRECISION)
        dup = tl.dot(tl.trans(inner), grad, dup, input_precision=PRECISION)
        if ONES:
            if stripe == 0:
                both_sums = tl.dot(tl.trans(dz), inner, both_sums, input_precision=PRECISION)
        else:
            dc += tl.sum(grad.to(tl.float32), 0)
            db += tl.sum(dz.to(tl.float32), 0)
    if ONES:
        ones = (columns == narrow).to(tl.float32)
        dc, db = tl.sum(dup * ones[:, None], 0), tl.sum(both_sums * ones[None, :], 1)
    row = (task * parts + part).to(tl.int64)
    matrices_ptr += row * matrices_row
    vectors_ptr += row * vectors_row
    both = known[:, None] & there[None, :]
    low = matrices_ptr.dtype.element_ty
    tl.store(matrices_ptr + columns[:, None] * width + w[None, :], ddown.to(low), mask=both)
    matrices_ptr += narrow * width
    tl.store(matrices_ptr + w[None, :] * narrow + columns[:, None], dup.to(low), mask=both)
    tl.store(vectors_ptr + w, dc, mask=there)
    if stripe == 0:
        tl.store(vectors_ptr + width + columns, db, mask=known)


@torch.library.custom_op("intarsia::bottleneck_backward", mutates_args=())
def _bottleneck_backward(
    grad: Tensor, y: Tensor, down: Tensor, up: Tensor, z: Tensor, kind: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dy; dD and dU one behind the other, (N, 2 M W) in D's dtype; and dc and db, (N, W + M) fp32."""
    tasks, narrow, width = down.shape
    rows, grad = len(z) // tasks, grad.contiguous()
    tile = tile_of(len(z))
    down, up = dense(down), dense(up)
    settings = options(grad, narrow, kind, wide=tile == 16)
    dy, (dz, inner) = torch.empty_like(grad), z.new_empty(2, len(z), settings["NARROW"])
    bottleneck_backward[(-(-rows // tile), tasks)](
        grad, down, up, z, dy, dz, inner, rows, width, narrow, down.stride(0), up.stride(0), TILE=tile, **settings
    )
    stripes = -(-width // _STRIPE)
    parts = max(1, min(rows // (4 * _STEP), PROGRAMS // 2 // (stripes * tasks)))
    matrices = torch.empty(tasks, 2 * narrow * width, dtype=down.dtype, device=z.device)
    vectors = torch.empty(tasks, width + narrow, dtype=torch.float32, device=z.device)
    into = matrices, vectors
    if parts > 1:
        sums = torch.empty(tasks, parts, matrices.shape[1] + vectors.shape[1], dtype=torch.float32, device=z.device)
        into = sums, sums[..., matrices.shape[1] :]
    bottleneck_weights[(stripes, parts, tasks)](
        y, grad, dz, inner, *into, rows, parts, -(-rows // parts), width, narrow, *(one.stride(-2) for one in into),
        STRIPE=_STRIPE, TILE=_STEP, NARROW=settings["NARROW"], ONES=settings["NARROW"] > narrow, PRECISION=settings["PRECISION"],
        num_warps=4, num_stages=2 if y.dtype == torch.float32 else 4,
    )  # fmt: skip
    if parts > 1:
        add_up(into[0], matrices, vectors)
    return dy, matrices, vectors


@_bottleneck_backward.register_fake
def _(grad, y, down, up, z, kind):
    tasks, narrow, width = down.shape
    vectors = up.new_empty(tasks, width + narrow, dtype=torch.float32)
    return torch.empty_like(grad), down.new_empty(tasks, 2 * narrow * width), vectors


def gradients(
    grad: Tensor, y: Tensor, down: Tensor, up: Tensor, z: Tensor, kind: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> tuple[Tensor, ...]:
    """Of y, D, b, U and c. grad: the output's; z: D y + b, (T, M); dtypes: of b and c."""
    tasks, narrow, width = down.shape
    dy, matrices, vectors = _bottleneck_backward(grad, y, down, up, z, kind)
    db, dc = (one.to(dtype) for one, dtype in zip((vectors[:, width:], vectors[:, :width]), dtypes, strict=True))
    ddown, dup = matrices.chunk(2, dim=1)
    return dy, ddown.view(tasks, narrow, width), db, dup.view(tasks, width, narrow).to(up.dtype), dc
