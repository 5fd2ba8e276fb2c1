"""Norms in bfloat16 on a CPU by a kernel of our own, with the residual sum before them, while something trains.

In torch a sum, the norm of it, and the sum of the gradients of its two readers are passes of their own over the
states.

... leading axes, W width.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from intarsia.ops.native.compiled import Library, alike, in_training
from intarsia.ops.once import once_differentiable
from intarsia.ops.reference import Own

FULL = 32
"""What W is a multiple of."""


class _Shape(ctypes.Structure):
    """As `shape` in norms.c."""

    _fields_ = (
        ("rows", ctypes.c_long),
        ("width", ctypes.c_long),
        ("eps", ctypes.c_float),
        ("centre", ctypes.c_int),
    )


def takes(x: Tensor, own: Own | None = None, gain: Tensor | None = None) -> bool:
    """Whether the kernel is there, and for these: in training, one task."""
    if not in_training(x) or x.shape[-1] % FULL:
        return False
    if own is not None and any(t is not None and (t.dtype != x.dtype or t.requires_grad) for t in (own.gain, own.bias)):
        return False
    return (gain is None or (len(gain) == 1 and gain.dtype == torch.float32)) and LIBRARY.there()


def summed_norm(
    x: Tensor, residual: Tensor | None, own: Own, gain: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(own gain + gain) n(x + residual) + own bias + bias, twice: the second for another reader, whose gradient need not be
    added to the first one's in memory. What is None is left out.

    x, residual: (..., W) bfloat16; own's: (W,) bfloat16; gain, bias: (1, W) float32, rounded to bfloat16 as they are kept.
    """
    return _SummedNorm.apply(x, residual, own.gain, own.bias, gain, bias, own.eps, own.centre)  # type: ignore[return-value]


class _SummedNorm(Function):
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
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        gain, bias = (None if t is None else t.float().contiguous() for t in (gain, bias))
        out, total = torch.empty_like(x), x if residual is None else torch.empty_like(x)
        ctx.shape = _Shape(x.numel() // x.shape[-1], x.shape[-1], eps, int(centre))
        LIBRARY.run("norm_forward", ctx.shape, x, residual, own_gain, own_bias, gain, bias, out, total)
        ctx.save_for_backward(total, own_gain, gain)
        ctx.has_bias, ctx.summed = bias is not None, residual is not None
        ctx.set_materialize_grads(False)
        return out, out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override] - the wrapper hides the names
        total, own_gain, gain = ctx.saved_tensors
        grad, again = (None if one is None else one.contiguous() for one in grads)
        if grad is None:
            grad, again = again, None
        if grad is None:
            return (None,) * 8
        dx = torch.empty_like(total)
        dgain = None if gain is None else torch.empty_like(gain)
        dbias = torch.empty_like(own_gain, dtype=torch.float32)[None] if ctx.has_bias else None
        arguments = grad, again, total, own_gain, gain, dx, dgain, dbias
        LIBRARY.run("norm_backward", ctx.shape, *arguments)
        return dx, dx if ctx.summed else None, None, None, dgain, dbias, None, None


def _agrees() -> bool:
    """Whether a small norm behind a sum, and its gradients, are what they are in float64."""
    g = torch.Generator().manual_seed(0)
    draws = torch.randn(6, 7, 64, generator=g, dtype=torch.float32).bfloat16()
    x, residual, *grads = (one.clone().requires_grad_() for one in draws[:4])
    gain, bias = (one[:1].float().requires_grad_() for one in draws[4:])
    own = Own(draws[4, 1] + 2, draws[5, 1], 1e-5, True)
    out = summed_norm(x, residual, own, gain, bias)
    wide = [one.detach().double().requires_grad_() for one in (x, residual, gain, bias)]
    whole = torch.nn.functional.layer_norm(wide[0] + wide[1], (64,), eps=1e-5)
    same = whole * (own.gain.double() + wide[2]) + own.bias.double() + wide[3]  # type: ignore[union-attr]
    found = [out[0], *torch.autograd.grad(out, (x, residual, gain, bias), [one.detach() for one in grads])]
    wanted = [same, *torch.autograd.grad(same, wide, grads[0].detach().double() + grads[1].detach())]
    return alike(found, wanted)


LIBRARY = Library("norms", _agrees)
