"""Trained norms in one pass over memory each way: the change of one, y + g n(x) + c, and the whole, (G + g) n(x) + C + c, with the
residual sum before it where x is one.

In plain torch the change alone is five passes forward and about nine backward over tensors as large as the states; a row of numbers
is small enough to stay in a program's registers. A sum is added up while it is read, and so are the gradients of two readers.

N tasks, T rows in all (T / N a task), D width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import Function

from intarsia.ops.kernels.sums import add_up
from intarsia.ops.once import once_differentiable

_PROGRAMS = 528
"""About how many share the rows where there are sums over them (four for each of an H100's multiprocessors)."""
_ROWS, _SUM_ROWS = 4, 2
"""That a program reads at a time, so that their waits for memory are at the same time; these of a few, with 768 columns, 1,700 to
13,800 rows, were the quickest on an H100."""


@triton.jit
def _normal(x, mask, width, eps, CENTRE: tl.constexpr):
    """n(x) and the factor of its derivative, of a row (W,) or of rows (R, W); fp32."""
    if CENTRE:
        x = tl.where(mask, x - tl.sum(x, -1, keep_dims=True) / width, 0.0)
    scale = tl.rsqrt(tl.sum(x * x, -1, keep_dims=True) / width + eps)
    return x * scale, scale


@triton.jit
def norm_forward(x_ptr, r_ptr, y_ptr, gain_ptr, bias_ptr, own_gain_ptr, own_bias_ptr, out_ptr, total_ptr, rows, width, gain_task,
                 bias_task, eps, CENTRE: tl.constexpr, SUM: tl.constexpr, GAIN: tl.constexpr, BIAS: tl.constexpr,
                 OWN: tl.constexpr, OWN_BIAS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    index, task = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < width
    mask = (index < rows)[:, None] & inside[None]
    at = (task * rows + index)[:, None] * width + columns[None]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if SUM:  # rounded as it is kept, and as torch's own sum is
        total = (x + tl.load(r_ptr + at, mask=mask, other=0.0).to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + at, total, mask=mask)
        x = total.to(tl.float32)
    out, _ = _normal(x, mask, width, eps, CENTRE)
    if GAIN:
        gain = tl.load(gain_ptr + task * gain_task + columns, mask=inside, other=0.0).to(tl.float32)
        if OWN:
            gain += tl.load(own_gain_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    else:
        gain = tl.load(own_gain_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    out *= gain[None]
    if not OWN:
        out += tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if OWN_BIAS:
        out += tl.load(own_bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)[None]
    if BIAS:
        out += tl.load(bias_ptr + task * bias_task + columns, mask=inside, other=0.0).to(tl.float32)[None]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def norm_backward(x_ptr, grad_ptr, again_ptr, gain_ptr, own_gain_ptr, dx_ptr, sums_ptr, rows, parts, own_rows, width, gain_task,
                  eps, CENTRE: tl.constexpr, AGAIN: tl.constexpr, GAIN: tl.constexpr, BIAS: tl.constexpr, OWN: tl.constexpr,
                  WIDTH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    part, task = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < width
    gain = tl.zeros([WIDTH], tl.float32)
    if GAIN:
        gain += tl.load(gain_ptr + task * gain_task + columns, mask=inside, other=0.0).to(tl.float32)
    if OWN:
        gain += tl.load(own_gain_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    dgain, dbias = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    end = min((part + 1) * own_rows, rows)
    for first in tl.range(part * own_rows, end, ROWS, num_stages=3):
        index = first + tl.arange(0, ROWS)
        mask = (index < end)[:, None] & inside[None]
        at = (task * rows + index)[:, None] * width + columns[None]
        normal, scale = _normal(tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32), mask, width, eps, CENTRE)
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if AGAIN:
            grad += tl.load(again_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if GAIN:
            dgain += tl.sum(grad * normal, 0)
            dbias += tl.sum(grad, 0)
        own = grad * gain[None]
        dx = own - normal * (tl.sum(own * normal, 1) / width)[:, None]
        if CENTRE:
            dx -= (tl.sum(own, 1) / width)[:, None]
        tl.store(dx_ptr + at, (dx * scale).to(dx_ptr.dtype.element_ty), mask=mask)
    where = (task * parts + part) * width + columns
    if GAIN:
        tl.store(sums_ptr + where, dgain, mask=inside)
    if BIAS:
        tl.store(sums_ptr + tl.num_programs(1) * parts * width + where, dbias, mask=inside)


def _options(width: int, warp: int = 512) -> dict:
    """warp: columns for each warp."""
    whole = triton.next_power_of_2(width)
    return {"WIDTH": whole, "num_warps": max(1, min(8, whole // warp))}


def launch(
    x: Tensor,
    y: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centre: bool,
    out: Tensor,
    own_gain: Tensor | None = None,
    own_bias: Tensor | None = None,
    residual: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    """out, which may be y, <- as `norm_change`. With a residual of x's shape total <- x + residual, and this is the norm's x."""
    width = x.shape[-1]
    tasks = 1 if gain is None else len(gain)
    rows = x.numel() // width // tasks
    at_once = min(_ROWS, triton.next_power_of_2(rows))
    norm_forward[(-(-rows // at_once), tasks)](
        x, *(x if one is None else one for one in (residual, y, gain, bias, own_gain, own_bias)), out,
        x if total is None else total, rows, width, _apart(gain), _apart(bias), eps,
        CENTRE=centre, SUM=residual is not None, GAIN=gain is not None, BIAS=bias is not None, OWN=own_gain is not None,
        OWN_BIAS=own_bias is not None, ROWS=at_once, **_options(width),
    )  # fmt: skip


def _apart(vectors: Tensor | None) -> int:
    return 0 if vectors is None else vectors.stride(0)


def launch_backward(
    grad: Tensor,
    again: Tensor | None,
    x: Tensor,
    gain: Tensor | None,
    own_gain: Tensor | None,
    has_bias: bool,
    eps: float,
    centre: bool,
) -> tuple[Tensor, Tensor]:
    """dx, and the gradients of gain and bias one behind the other, (0 to 2, N, D). again: what is to be added to grad."""
    width, tasks = x.shape[-1], 1 if gain is None else len(gain)
    rows = x.numel() // width // tasks
    at_once, own = 1, 1
    if gain is not None:
        at_once, wanted = _SUM_ROWS, -(-rows * tasks // _PROGRAMS)
        own = max(8, -(-wanted // at_once) * at_once)
    parts, kinds = -(-rows // own), 0 if gain is None else 1 + has_bias
    dx = torch.empty_like(x)
    sums = torch.empty(kinds, tasks, parts, width, dtype=torch.float32, device=x.device)
    norm_backward[(parts, tasks)](
        x, grad.contiguous(), x if again is None else again.contiguous(), x if gain is None else gain,
        x if own_gain is None else own_gain, dx, sums, rows, parts, own, width, _apart(gain), eps,
        CENTRE=centre, AGAIN=again is not None, GAIN=gain is not None, BIAS=kinds == 2, OWN=own_gain is not None, ROWS=at_once,
        **_options(width, 1024 if gain is None else 512),
    )  # fmt: skip
    found = torch.empty(kinds, tasks, width, dtype=x.dtype if gain is None else gain.dtype, device=x.device)
    if kinds:
        add_up(sums.flatten(0, 1), found[:0], found)
    return dx, found


class SummedNorm(Function):
    """(G + g) n(x + r) + C + c, twice: the second time for another reader, whose gradient need not be added to the first one's in
    memory. Where g, c, C or r is None it is left out."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        own_gain: Tensor,
        own_bias: Tensor | None,
        gain: Tensor | None,
        bias: Tensor | None,
        eps: float,
        centre: bool,
    ) -> tuple[Tensor, Tensor]:
        out, total = torch.empty_like(x), x if residual is None else torch.empty_like(x)
        launch(x, None, gain, bias, eps, centre, out, own_gain, own_bias, residual, total)
        ctx.save_for_backward(total, own_gain, gain)
        ctx.eps, ctx.centre, ctx.has_bias, ctx.summed = eps, centre, bias is not None, residual is not None
        ctx.set_materialize_grads(False)
        return out, out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        total, own_gain, gain = ctx.saved_tensors
        grad, again = grads if grads[0] is not None else grads[::-1]
        if grad is None:
            return (None,) * 8
        dx, sums = launch_backward(grad, again, total, gain, own_gain, ctx.has_bias, ctx.eps, ctx.centre)
        dgain, dbias = (sums[number] if number < len(sums) else None for number in range(2))
        return dx, dx if ctx.summed else None, None, None, dgain, dbias, None, None


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
    return launch_backward(grad, None, x, gain, own_gain, has_bias, eps, centre)


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
