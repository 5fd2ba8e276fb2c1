"""Bottlenecks in bfloat16 on a CPU by a kernel of our own: adapters and LoRA while they train.

In torch they are two products, a non-linearity and a sum, each with its own pass over the states or over the narrow side, and as
many again for each of five gradients; every weight is rounded to bf16 by a call, and its gradient widened by another.

L rows, R and W numbers that are read and written, M the narrow side.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from intarsia.ops.native.compiled import Library, alike, in_training
from intarsia.ops.once import once_differentiable

ACTIVATIONS = {
    "relu": 0,
    "gelu": 1,
    "gelu_new": 2,
    "gelu_pytorch_tanh": 2,
    "silu": 3,
    "swish": 3,
    "tanh": 4,
    "linear": 5,
}
"""Those that the kernel knows, by the names of `ops.ACTIVATIONS`."""
FULL, WIDEST = 32, 128
"""What R and W are multiples of; up to which M it is quicker than torch."""


class _Shape(ctypes.Structure):
    """As `shape` in bottleneck.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("rows", "reads", "writes", "width", "stride")),
        ("kind", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("same", ctypes.c_int),
    )


def takes(y: Tensor, x: Tensor, down: object, up: object, non_linearity: str) -> bool:
    """Whether the kernel is there, and for these: one task's weights in float32, in training. Without AMX torch is quicker."""
    if not in_training(x):
        return False
    if not (isinstance(down, Tensor) and isinstance(up, Tensor) and down.dtype == up.dtype == torch.float32):
        return False
    (tasks, width, reads), writes = down.shape, up.shape[1]
    if y.dtype != x.dtype or y.shape != (*x.shape[:-1], writes) or x.shape[-1] != reads or up.shape[2] != width:
        return False  # what else would be read is somebody else's
    if tasks > 1 or width > WIDEST or reads % FULL or writes % FULL or non_linearity not in ACTIVATIONS:
        return False
    trained = down.requires_grad or up.requires_grad
    return trained and LIBRARY.there()


def bottleneck(
    y: Tensor,
    x: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor,
    up_bias: Tensor | None,
    non_linearity: str,
    scale: float = 1.0,
) -> Tensor:
    """y + scale (up f(down x + down_bias) + up_bias).   x: (..., R), y: (..., W) bfloat16, may be x -> (..., W).

    down: (1, M, R), down_bias: (1, M) or None, up: (1, W, M), up_bias: (1, W) or None; float32. MemoryError where there is no room.
    """
    return _Bottleneck.apply(y, x, down, down_bias, up, up_bias, ACTIVATIONS[non_linearity], scale)  # type: ignore[no-any-return]


class _Bottleneck(Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        down: Tensor,
        down_bias: Tensor | None,
        up: Tensor,
        up_bias: Tensor | None,
        kind: int,
        scale: float,
    ) -> Tensor:
        same = x is y
        x, down, up = (one.contiguous() for one in (x, down, up))
        y, stride = _apart(x if same else y)
        rows, width = x.numel() // x.shape[-1], down.shape[1]
        ctx.sizes = rows, x.shape[-1], y.shape[-1], width
        kept, out = x.new_empty(rows, -(-width // FULL) * FULL), x.new_empty(y.shape)
        shape = _Shape(*ctx.sizes, stride, kind, scale, same)
        LIBRARY.run("bottleneck_forward", shape, y, x, down, _dense(down_bias), up, _dense(up_bias), out, kept)
        ctx.save_for_backward(x, kept, down, up)
        ctx.same, ctx.kind, ctx.scale, ctx.biases = same, kind, scale, (down_bias is not None, up_bias is not None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] - the wrapper hides the names
        x, kept, down, up = ctx.saved_tensors
        grad, stride = _apart(grads[0])
        dx = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        ddown, dup = torch.empty_like(down), torch.empty_like(up)
        ddown_bias, dup_bias = (
            one.new_empty(1, one.shape[1]) if there else None for one, there in zip((down, up), ctx.biases, strict=True)
        )
        found = dx, ddown, ddown_bias, dup, dup_bias
        shape = _Shape(*ctx.sizes, stride, ctx.kind, ctx.scale, ctx.same)
        LIBRARY.run("bottleneck_backward", shape, grad, x, kept, down, up, *found)
        return None if ctx.same else grad, *found, None, None


def _apart(rows: Tensor) -> tuple[Tensor, int]:
    """Rows whose numbers lie side by side, and how far one is from the next: a copy only where they do not, or not evenly."""
    try:
        flat = rows.view(-1, rows.shape[-1])
    except RuntimeError:
        flat = rows
    if flat.dim() == 2 and flat.stride(1) == 1:
        return rows, flat.stride(0)
    return rows.contiguous(), rows.shape[-1]


def _dense(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().contiguous()


def _agrees() -> bool:
    """Whether a small adapter and its gradients are what they are in float64."""
    g = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 70, 64, generator=g, dtype=torch.float32).bfloat16()
    down, up = torch.randn(2, 1, 24, 64, generator=g, dtype=torch.float32) * 0.2
    biases = torch.randn(2, 1, 64, generator=g, dtype=torch.float32)
    given = [x, down, biases[0, :, :24], up.mT.contiguous(), biases[1]]
    own, wide = ([one.clone().to(to).requires_grad_() for one in given] for to in (None, torch.float64))
    out = bottleneck(own[0], *own, "silu", 0.5)  # type: ignore[arg-type]
    inner = torch.nn.functional.silu(wide[0] @ wide[1][0].mT + wide[2])
    same = wide[0] + 0.5 * (inner @ wide[3][0].mT + wide[4])
    found, wanted = (
        [first, *torch.autograd.grad(first, rest, grad.to(first.dtype))] for first, rest in ((out, own), (same, wide))
    )
    return alike(found, wanted)


LIBRARY = Library("bottleneck", _agrees)
