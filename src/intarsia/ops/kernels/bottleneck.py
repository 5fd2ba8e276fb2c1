"""A serial bottleneck adapter with its residual, y + U f(D y + b) + c, in one kernel each way, grouped by task.

The inner activation (as many numbers a token as the bottleneck is wide) stays in registers, and y is read twice, the second time
from the cache; in plain torch its three products and sums are five passes forward and about ten backward.

N tasks, T rows in all (T / N a task), W width of the states, M width of the bottleneck.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from intarsia.ops.kernels.bottleneck_backward import gradients
from intarsia.ops.kernels.narrow import adapted, dense, inner_of, options, tile_of


@triton.jit
def bottleneck_forward(y_ptr, down_ptr, down_bias_ptr, up_ptr, up_bias_ptr, out_ptr, z_ptr, rows, width, narrow,
             down_task, up_task, bias_task, up_bias_task,
             KIND: tl.constexpr, KEEP: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
             NARROW: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    tile, task = tl.program_id(0), tl.program_id(1).to(tl.int64)
    index, columns = tile * TILE + tl.arange(0, TILE), tl.arange(0, NARROW)
    inside, known = index < rows, columns < narrow
    at = task * rows + index
    z, inner = inner_of(
        y_ptr, at, inside, down_ptr + task * down_task, down_bias_ptr + task * bias_task, columns, known, width,
        KIND, TILE, CHUNK, NARROW, PRECISION,
    )  # fmt: skip
    if KEEP:
        tl.store(z_ptr + at[:, None] * narrow + columns[None, :], z, mask=inside[:, None] & known[None, :])
    up_ptr += task * up_task
    up_bias_ptr += task * up_bias_task
    tl.debug_barrier()  # out may be y: no warp writes before all have read their rows
    for begin in range(0, width, CHUNK):
        w = begin + tl.arange(0, CHUNK)
        there = inside[:, None] & (w < width)[None, :]
        out = adapted(y_ptr, at, there, inner, up_ptr, up_bias_ptr, columns, known, w, width, narrow, PRECISION)
        tl.store(out_ptr + at[:, None] * width + w[None, :], out.to(out_ptr.dtype.element_ty), mask=there)


def launch(
    y: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    kind: int,
    out: Tensor,
    z: Tensor | None = None,
) -> None:
    """out <- y + U f(D y + b) + c; and z <- D y + b, (T, M), where it is given. y and out: contiguous, (..., W), and may be the
    same; down: (N, M, W), up: (N, W, M), and their biases."""
    narrow, width = down.shape[-2:]
    tasks, count = len(down_bias), y.numel() // width
    rows, tile = count // tasks, tile_of(count)
    down, up = dense(down), dense(up)
    bottleneck_forward[(-(-rows // tile), tasks)](
        y, down, down_bias, up, up_bias, out, y if z is None else z, rows, width, narrow,
        down.stride(0), up.stride(0), down_bias.stride(0), up_bias.stride(0),
        KEEP=z is not None, TILE=tile,
        **options(y, narrow, kind, wide=tile == 16),
    )  # fmt: skip


@torch.library.custom_op("intarsia::bottleneck", mutates_args=())
def bottleneck(
    y: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, kind: int
) -> tuple[Tensor, Tensor]:
    """y + U f(D y + b) + c, and D y + b, (T, M). y: contiguous, (..., W); down: (N, M, W), up: (N, W, M), and their biases."""
    _, narrow, width = down.shape
    out, z = torch.empty_like(y), y.new_empty(y.numel() // width, narrow)
    launch(y, down, down_bias, up, up_bias, kind, out, z)
    return out, z


@bottleneck.register_fake
def _(y, down, down_bias, up, up_bias, kind):
    return torch.empty_like(y), y.new_empty(y.numel() // down.shape[2], down.shape[1])


def _keep(ctx, inputs, output) -> None:
    y, down, down_bias, up, up_bias, ctx.kind = inputs
    ctx.dtypes = down_bias.dtype, up_bias.dtype
    ctx.set_materialize_grads(False)  # or there were zeros for z's
    ctx.save_for_backward(y, down, up, output[1])


def _derive(ctx, grad, _z):
    return *gradients(grad, *ctx.saved_tensors, ctx.kind, ctx.dtypes), None


torch.library.register_autograd("intarsia::bottleneck", _derive, setup_context=_keep)
