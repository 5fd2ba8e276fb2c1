"""Attention in bfloat16 on a CPU by a kernel of our own.

torch's own takes several times as long backward; two products with a softmax between them (`ops/attention.py`) bring the heads
together first, and write and read the scores six times. results/attention_cpu.md has all of them.

B rows, H heads, T queries, S keys, D width of a head.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn import functional as F

from intarsia.ops.native.compiled import Library, alike, watched
from intarsia.ops.once import once_differentiable

FULL = 32
"""What heads' widths are multiples of: a row of AMX's registers."""


class _Shape(ctypes.Structure):
    """As `shape` in attention.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("rows", "heads", "queries", "keys", "width")),
        *((f"{name}{axis}", ctypes.c_long) for name in "qkvo" for axis in range(3)),
        *((f"mask{axis}", ctypes.c_long) for axis in range(4)),
        ("scale", ctypes.c_float),
    )


def _agrees() -> bool:
    """Whether a small attention and its gradients are what they are in float64."""
    g = torch.Generator().manual_seed(0)
    draws = torch.randn(4, 2, 2, 70, 32, generator=g, dtype=torch.float32).bfloat16()
    mask = torch.arange(70)[None, None, None, :] < torch.tensor([70, 41])[:, None, None, None]
    q, k, v, grad = (x.clone().requires_grad_() for x in draws)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out = attention(q, k, v, mask, 0.2)
    same = F.scaled_dot_product_attention(wide[0], wide[1], wide[2], mask, scale=0.2)
    found = [out, *torch.autograd.grad(out, (q, k, v), grad.detach())]
    wanted = [same, *torch.autograd.grad(same, wide, grad.detach().double())]
    return alike(found, wanted)


def takes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether the kernel is there, and for these."""
    if (
        watched()
        or q.dtype != torch.bfloat16
        or q.device.type != "cpu"
        or (mask is not None and mask.dtype != torch.bool)
    ):
        return False
    rows, heads, _, width = q.shape
    alike = k.dtype == v.dtype == q.dtype and k.shape == v.shape == (rows, heads, k.shape[2], width)
    return alike and width % FULL == 0 and q.numel() > 0 and k.numel() > 0 and LIBRARY.there()


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T) v.   q: (B, H, T, D), k, v: (B, H, S, D) bfloat16 -> (B, H, T, D), tokens' heads side by side in memory.

    mask: bool, (B or 1, H or 1, T or 1, S), true where a query sees a key. A query that sees none has the mean of all.
    MemoryError where there is no room for a head.
    """
    q, k, v = (_even(x) for x in (q, k, v))
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _Attention.apply(q, k, v, mask, scale)  # type: ignore[no-any-return]
    return _forward(q, k, v, mask, scale, None)


def _forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, kept: Tensor | None) -> Tensor:
    out = _heads(q, q.shape[2])
    LIBRARY.run("attention_forward", _shape(q, k, v, out, mask, scale), q, k, v, mask, out, kept)
    return out


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        kept = q.new_empty(*q.shape[:3], 2, dtype=torch.float32)
        ctx.save_for_backward(q, k, v, mask, kept)
        ctx.scale = scale
        return _forward(q, k, v, mask, scale, kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] - the wrapper hides the names
        q, k, v, mask, kept = ctx.saved_tensors
        grad = _even(grads[0])
        queries, keys = q.shape[2], k.shape[2]
        # Side by side where they can be, as the product before them wants them.
        for_q, for_k, for_v = _heads(q, queries, 3) if queries == keys else (_heads(q, queries), *_heads(q, keys, 2))
        shape, to = _shape(q, k, v, grad, mask, ctx.scale), _shape(for_q, for_k, for_v, grad, None, ctx.scale)
        found = [x if need else None for x, need in zip((for_q, for_k, for_v), ctx.needs_input_grad, strict=False)]
        LIBRARY.run("attention_backward", shape, ctypes.byref(to), q, k, v, mask, kept, grad, *found)
        return *found, None, None


def _heads(q: Tensor, positions: int, count: int = 0) -> Tensor:
    """Room for (B, H, positions, D), tokens' heads side by side in memory; count: so many of them, side by side for each token."""
    rows, heads, _, width = q.shape
    if not count:
        # Not a transposed one: what a Function gives back must be no view, or nobody could change it in place.
        strides = (positions * heads * width, width, heads * width, 1)
        return q.new_empty_strided((rows, heads, positions, width), strides)
    return q.new_empty(rows, positions, count, heads, width).permute(2, 0, 3, 1, 4)


def _even(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _shape(q: Tensor, k: Tensor, v: Tensor, out: Tensor, mask: Tensor | None, scale: float) -> _Shape:
    rows, heads, queries, width = q.shape
    keys = k.shape[2]
    seen = (0, 0, 0, 0) if mask is None else mask.expand(rows, heads, queries, keys).stride()
    strides = *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3]
    return _Shape(rows, heads, queries, keys, width, *strides, *seen, scale)


LIBRARY = Library("attention", _agrees)
