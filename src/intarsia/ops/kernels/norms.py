"""The change of a trained norm, y + g n(x) + c, in one pass over memory each way; and the whole norm, (G + g) n(x) + C + c.

In plain torch it is five passes forward and about nine backward over tensors as large as the states; a row of numbers is small
enough to stay in a program's registers.

N tasks, T rows in all (T / N a task), D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from intarsia.ops.kernels.sums import add_up

_PROGRAMS = 528
"""About how many share the rows in the backward pass (four for each of an H100's multiprocessors): each keeps the sums of its
rows."""


@triton.jit
def _normal(x, columns, width, eps, CENTRE: tl.constexpr):
    """n(x) and the factor of its derivative, of one row."""
    x = x.to(tl.float32)
    if CENTRE:
        x = tl.where(columns < width, x - tl.sum(x, 0) / width, 0.0)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    return x * scale, scale


@triton.jit
def norm_forward(x_ptr, y_ptr, gain_ptr, bias_ptr, own_gain_ptr, own_bias_ptr, out_ptr, rows, width, gain_task, bias_task, eps,
             CENTRE: tl.constexpr, BIAS: tl.constexpr, OWN: tl.constexpr, OWN_BIAS: tl.constexpr,
             WIDTH: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside, task = columns < width, row // rows
    x = tl.load(x_ptr + row * width + columns, mask=inside, other=0.0)
    gain = tl.load(gain_ptr + task * gain_task + columns, mask=inside, other=0.0).to(tl.float32)
    normal, _ = _normal(x, columns, width, eps, CENTRE)
    if OWN:
        out = normal * (gain + tl.load(own_gain_ptr + columns, mask=inside, other=0.0).to(tl.float32))
        if OWN_BIAS:
            out += tl.load(own_bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    else:
        out = tl.load(y_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32) + normal * gain
    if BIAS:
        out += tl.load(bias_ptr + task * bias_task + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + columns, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward(x_ptr, grad_ptr, gain_ptr, own_gain_ptr, dx_ptr, sums_ptr, rows, parts, width, gain_task, eps,
              CENTRE: tl.constexpr, BIAS: tl.constexpr, OWN: tl.constexpr, WIDTH: tl.constexpr,
              ROWS: tl.constexpr, AT_ONCE: tl.constexpr):  # fmt: skip
    part, task = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, WIDTH)
    inside = columns < width
    gain = tl.load(gain_ptr + task * gain_task + columns, mask=inside, other=0.0).to(tl.float32)
    if OWN:
        gain += tl.load(own_gain_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    dgain, dbias = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    end = min((part + 1) * ROWS, rows)
    for first in range(part * ROWS, end, AT_ONCE):  # so many rows' waits for memory at the same time
        index = first + tl.arange(0, AT_ONCE)
        mask = (index < end)[:, None] & inside[None]
        at = (task * rows + index).to(tl.int64)[:, None] * width + columns[None]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if CENTRE:
            x = tl.where(mask, x - (tl.sum(x, 1) / width)[:, None], 0.0)
        scale = tl.rsqrt(tl.sum(x * x, 1) / width + eps)[:, None]
        normal = x * scale
        dgain += tl.sum(grad * normal, 0)
        dbias += tl.sum(grad, 0)
        own = grad * gain[None]
        dx = own - normal * (tl.sum(own * normal, 1) / width)[:, None]
        if CENTRE:
            dx -= (tl.sum(own, 1) / width)[:, None]
        tl.store(dx_ptr + at, (dx * scale).to(dx_ptr.dtype.element_ty), mask=mask)
    where = (task * parts + part) * width + columns
    tl.store(sums_ptr + where, dgain, mask=inside)
    if BIAS:
        tl.store(sums_ptr + tl.num_programs(1) * parts * width + where, dbias, mask=inside)


def _options(width: int) -> dict:
    return {"WIDTH": triton.next_power_of_2(width), "num_warps": 4 if width <= 2048 else 8}


def launch(
    x: Tensor,
    y: Tensor | None,
    gain: Tensor,
    bias: Tensor | None,
    eps: float,
    centre: bool,
    out: Tensor,
    own_gain: Tensor | None = None,
    own_bias: Tensor | None = None,
) -> None:
    """out, which may be y, <- as `norm_change`."""
    width = x.shape[-1]
    count = x.numel() // width
    shift = gain if bias is None else bias
    norm_forward[(count,)](
        x, x if y is None else y, gain, shift, gain if own_gain is None else own_gain, gain if own_bias is None else own_bias,
        out, count // len(gain), width, gain.stride(0), shift.stride(0), eps,
        CENTRE=centre, BIAS=bias is not None, OWN=own_gain is not None, OWN_BIAS=own_bias is not None, **_options(width),
    )  # fmt: skip


@torch.library.custom_op("intarsia::norm_change", mutates_args=())
def norm_change(
    x: Tensor,
    y: Tensor | None,
    gain: Tensor,
    bias: Tensor | None,
    eps: float,
    centre: bool,
    own_gain: Tensor | None = None,
    own_bias: Tensor | None = None,
) -> Tensor:
    """As `ops.norm_change`, y or the norm's own gain (and bias) given; x and y are contiguous, gain and bias (N, D), each task's
    dense."""
    out = torch.empty_like(x)
    launch(x, y, gain, bias, eps, centre, out, own_gain, own_bias)
    return out


@norm_change.register_fake
def _(x, y, gain, bias, eps, centre, own_gain=None, own_bias=None):
    return torch.empty_like(x)


@torch.library.custom_op("intarsia::norm_change_backward", mutates_args=())
def _norm_change_backward(
    grad: Tensor, x: Tensor, gain: Tensor, own_gain: Tensor | None, has_bias: bool, eps: float, centre: bool
) -> tuple[Tensor, Tensor]:
    """dx, and the gradients of gain and bias one behind the other, (1 or 2, N, D)."""
    width, tasks = x.shape[-1], len(gain)
    rows = x.numel() // width // tasks
    wanted = -(-rows * tasks // _PROGRAMS)
    at_once = 4 if wanted <= 8 else 2  # the quickest on an H100 with 768 columns, 1,700 to 52,000 rows
    own = max(8, -(-wanted // at_once) * at_once)
    parts = -(-rows // own)
    dx = torch.empty_like(x)
    sums = torch.empty(1 + has_bias, tasks, parts, width, dtype=torch.float32, device=x.device)
    norm_backward[(parts, tasks)](
        x, grad.contiguous(), gain, gain if own_gain is None else own_gain, dx, sums, rows, parts, width, gain.stride(0), eps,
        CENTRE=centre, BIAS=has_bias, OWN=own_gain is not None, ROWS=own, AT_ONCE=at_once, **_options(width),
    )  # fmt: skip
    found = torch.empty(1 + has_bias, tasks, width, dtype=gain.dtype, device=x.device)
    add_up(sums.flatten(0, 1), found[:0], found)
    return dx, found


@_norm_change_backward.register_fake
def _(grad, x, gain, own_gain, has_bias, eps, centre):
    return torch.empty_like(x), gain.new_empty(1 + has_bias, *gain.shape)


def _keep(ctx, inputs, output) -> None:
    x, _, gain, bias, ctx.eps, ctx.centre, own_gain, _ = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, gain, *(() if own_gain is None else (own_gain,)))


def _derive(ctx, grad):
    x, gain, *own = ctx.saved_tensors
    dx, sums = _norm_change_backward(grad, x, gain, own[0] if own else None, ctx.has_bias, ctx.eps, ctx.centre)
    dy = None if own else grad
    return dx, dy, sums[0], sums[1] if ctx.has_bias else None, None, None, None, None


torch.library.register_autograd("intarsia::norm_change", _derive, setup_context=_keep)
