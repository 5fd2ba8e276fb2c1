"""A serial bottleneck adapter, the residual sum behind it and the norm of that in one kernel, for training: what the adapter puts
out is not made in memory.

N tasks, T rows in all (T / N a task), W width of the states, M width of the bottleneck. Adapters are D (N, M, W), b (N, M),
U (N, W, M) and c (N, W).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import Function

from intarsia.ops.kernels.bottleneck_backward import gradients
from intarsia.ops.kernels.narrow import adapted, dense, inner_of, options, tile_of
from intarsia.ops.kernels.norms import launch_backward
from intarsia.ops.once import once_differentiable


@triton.jit
def adapted_norm_forward(
    y_ptr, residual_ptr, down_ptr, down_bias_ptr, up_ptr, up_bias_ptr, own_gain_ptr, own_bias_ptr, gain_ptr, bias_ptr,
    out_ptr, total_ptr, z_ptr, rows, width, narrow, down_task, up_task, down_bias_task, up_bias_task, gain_task, bias_task, eps,
    KIND: tl.constexpr, OWN_BIAS: tl.constexpr, GAIN: tl.constexpr, BIAS: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, task = tl.program_id(0), tl.program_id(1).to(tl.int64)
    index, columns = tile * TILE + tl.arange(0, TILE), tl.arange(0, NARROW)
    inside, known = index < rows, columns < narrow
    at = task * rows + index
    z, inner = inner_of(
        y_ptr, at, inside, down_ptr + task * down_task, down_bias_ptr + task * down_bias_task, columns, known, width,
        KIND, TILE, CHUNK, NARROW, PRECISION,
    )  # fmt: skip
    tl.store(z_ptr + at[:, None] * narrow + columns[None, :], z, mask=inside[:, None] & known[None, :])
    up_ptr += task * up_task
    up_bias_ptr += task * up_bias_task
    # The mean of a row, and the sum of squares about it, chunk by chunk (Chan et al. 1979): squares about 0 would cancel.
    mean, spread = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
    for begin in range(0, width, CHUNK):
        w = begin + tl.arange(0, CHUNK)
        there = inside[:, None] & (w < width)[None, :]
        total = adapted(y_ptr, at, there, inner, up_ptr, up_bias_ptr, columns, known, w, width, narrow, PRECISION)
        # Rounded as the adapter's output, and as the sum, would be.
        total = total.to(total_ptr.dtype.element_ty).to(tl.float32)
        total += tl.load(residual_ptr + at[:, None] * width + w[None, :], mask=there, other=0.0).to(tl.float32)
        kept = total.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + at[:, None] * width + w[None, :], kept, mask=there)
        total = tl.where(there, kept.to(tl.float32), 0.0)
        count = tl.sum((w < width).to(tl.float32), 0)
        own = tl.sum(total, 1) / count
        apart = tl.where(there, total - own[:, None], 0.0)
        step = own - mean
        spread += tl.sum(apart * apart, 1) + step * step * (begin * count / (begin + count))
        mean += step * (count / (begin + count))
    scale = tl.rsqrt(spread / width + eps)
    tl.debug_barrier()  # all of this program's sums are written
    for begin in range(0, width, CHUNK):
        w = begin + tl.arange(0, CHUNK)
        there, wide = inside[:, None] & (w < width)[None, :], w < width
        total = tl.load(total_ptr + at[:, None] * width + w[None, :], mask=there, other=0.0).to(tl.float32)
        gain = tl.load(own_gain_ptr + w, mask=wide, other=0.0).to(tl.float32)
        if GAIN:
            gain += tl.load(gain_ptr + task * gain_task + w, mask=wide, other=0.0).to(tl.float32)
        out = (total - mean[:, None]) * scale[:, None] * gain[None, :]
        if OWN_BIAS:
            out += tl.load(own_bias_ptr + w, mask=wide, other=0.0).to(tl.float32)[None, :]
        if BIAS:
            out += tl.load(bias_ptr + task * bias_task + w, mask=wide, other=0.0).to(tl.float32)[None, :]
        tl.store(out_ptr + at[:, None] * width + w[None, :], out.to(out_ptr.dtype.element_ty), mask=there)


class AdaptedNorm(Function):
    """(G + g) n(a(y) + r) + C + c, where n takes the mean away and a is the adapter; twice, as `norms.SummedNorm` has it. Where g,
    c or C is None it is left out."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        residual: Tensor,
        down: Tensor,
        down_bias: Tensor,
        up: Tensor,
        up_bias: Tensor,
        kind: int,
        own_gain: Tensor,
        own_bias: Tensor | None,
        gain: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        tasks, narrow, width = down.shape
        count = y.numel() // width
        rows, tile = count // tasks, tile_of(count)
        out, total, z = torch.empty_like(y), torch.empty_like(y), y.new_empty(count, narrow)
        down, up = dense(down), dense(up)
        adapted_norm_forward[(-(-rows // tile), tasks)](
            y, residual, down, down_bias, up, up_bias, own_gain, *(own_gain if v is None else v for v in (own_bias, gain, bias)),
            out, total, z, rows, width, narrow, down.stride(0), up.stride(0), down_bias.stride(0), up_bias.stride(0),
            *(0 if v is None else v.stride(0) for v in (gain, bias)), eps,
            OWN_BIAS=own_bias is not None, GAIN=gain is not None, BIAS=bias is not None, TILE=tile,
            **options(y, narrow, kind, wide=tile == 16),
        )  # fmt: skip
        ctx.save_for_backward(y, total, z, down, up, own_gain, gain)
        ctx.kind, ctx.eps, ctx.has_bias = kind, eps, bias is not None
        ctx.dtypes = down_bias.dtype, up_bias.dtype
        ctx.set_materialize_grads(False)
        return out, out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        y, total, z, down, up, own_gain, gain = ctx.saved_tensors
        grad, again = grads if grads[0] is not None else grads[::-1]
        if grad is None:
            return (None,) * 12
        dx, sums = launch_backward(grad, again, total, gain, own_gain, ctx.has_bias, ctx.eps, True)
        dgain, dbias = (sums[number] if number < len(sums) else None for number in range(2))
        dy, *adapter = gradients(dx, y, down, up, z, ctx.kind, ctx.dtypes)
        return dy, dx, *adapter, None, None, None, dgain, dbias, None
