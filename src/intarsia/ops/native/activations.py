"""The activations of feed-forwards in bfloat16 on a CPU by a kernel of our own, while something trains.

torch computes GELU's slope by an error function and an exponential; they share one here.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn import functional as F

from intarsia.ops.native.compiled import Library, in_training
from intarsia.ops.once import once_differentiable

ACTIVATIONS = {"gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "silu": 3, "swish": 3}
"""Those that the kernel knows, by the names of `ops.ACTIVATIONS`."""


class _Shape(ctypes.Structure):
    """As `shape` in activations.c."""

    _fields_ = (("count", ctypes.c_long), ("kind", ctypes.c_int))


def takes(x: Tensor, name: str) -> bool:
    """Whether the kernel is there, and for these: in training."""
    return in_training(x) and x.requires_grad and name in ACTIVATIONS and LIBRARY.there()


def activation(x: Tensor, name: str) -> Tensor:
    """f(x), in x's shape; what came along with the product that gave x, if that knew that this would come."""
    made = getattr(x, "_intarsia_made", None)
    values = made.taken(x, name) if made is not None else None
    out: Any = _Activation.apply(x, ACTIVATIONS[name], (values,))
    out._intarsia_bent = x, name, (x._version, out._version)
    return out


def bent_from(y: Tensor) -> tuple[Tensor, str] | None:
    """(x, name) of a y that `activation` has given while nobody has changed either since or waits for y's gradient; a product with
    it may take x's gradient along."""
    x, name, versions = getattr(y, "_intarsia_bent", (None, "", ()))
    if x is None or (x._version, y._version) != versions or y._backward_hooks or y.retains_grad:
        return None
    return x, name


class _Activation(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: int, values: tuple[Tensor | None]) -> Tensor:
        """values: f(x), if it is there; in a tuple, since it is nothing that is differentiated."""
        x, (out,) = x.contiguous(), values
        ctx.save_for_backward(x)
        ctx.shape = _Shape(x.numel(), kind)
        if out is None:
            LIBRARY.run("activation_forward", ctx.shape, x, out := torch.empty_like(x))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] - the wrapper hides the names
        (x,) = ctx.saved_tensors
        LIBRARY.run("activation_backward", ctx.shape, grads[0].contiguous(), x, dx := torch.empty_like(x))
        return dx, None, None


def _agrees() -> bool:
    """Whether it is what it is in float64, and its slopes."""
    x = torch.linspace(-6, 6, 101, dtype=torch.float32).bfloat16().requires_grad_()
    same = x.detach().double().requires_grad_()
    functions = (("gelu", F.gelu), ("gelu_new", lambda z: F.gelu(z, approximate="tanh")), ("silu", F.silu))
    for name, function in functions:
        found, wanted = activation(x, name), function(same)
        slope, slopes = torch.autograd.grad(found.sum(), x)[0], torch.autograd.grad(wanted.sum(), same)[0]
        if not (bool((found - wanted).abs().max() < 0.03) and bool((slope - slopes).abs().max() < 0.01)):
            return False
    return True


LIBRARY = Library("activations", _agrees)
