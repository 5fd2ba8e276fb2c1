"""Attention in bfloat16 on a CPU by a kernel of our own.

torch's own takes several times as long backward; two products with a softmax between them (`ops/attention.py`) bring the heads
together first, and write and read the scores six times. results/attention_cpu.md has all of them.

B rows, H heads, T queries, S keys, D width of a head; N prefixes of P positions, each for B / N neighbouring rows.
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
        *((name, ctypes.c_long) for name in ("rows", "heads", "queries", "keys", "width", "before", "each")),
        *((f"{name}{axis}", ctypes.c_long) for name in (*"qkvo", "prefix") for axis in range(3)),
        *((f"mask{axis}", ctypes.c_long) for axis in range(4)),
        ("scale", ctypes.c_float),
    )


def _agrees() -> bool:
    """Whether a small attention, with a prefix too, and its gradients are what they are in float64."""
    g = torch.Generator().manual_seed(0)
    draws = torch.randn(4, 2, 2, 70, 32, generator=g, dtype=torch.float32).bfloat16()
    before = torch.randn(2, 1, 2, 5, 32, generator=g, dtype=torch.float32).bfloat16()
    mask = torch.arange(75)[None, None, None, :] < torch.tensor([75, 41])[:, None, None, None]
    q, k, v, grad = (x.clone().requires_grad_() for x in draws)
    first = before[0].clone().requires_grad_(), before[1].clone().requires_grad_()
    wide = [x.detach().double().requires_grad_() for x in (q, k, v, *first)]
    keys, values = (torch.cat([own.expand(2, -1, -1, -1), x], 2) for own, x in zip(wide[3:], wide[1:3], strict=True))
    found, wanted = [], []
    for inputs, out, same in (
        ((q, k, v), attention(q, k, v, mask[..., :70], 0.2), _exact(wide[0], wide[1], wide[2], mask[..., :70])),
        ((q, k, v, *first), attention(q, k, v, mask, 0.2, first), _exact(wide[0], keys, values, mask)),
    ):
        found += [out, *torch.autograd.grad(out, inputs, grad.detach())]
        wanted += [same, *torch.autograd.grad(same, wide[: len(inputs)], grad.detach().double(), retain_graph=True)]
    return alike(found, wanted)


def _exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask, scale=0.2)


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


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, prefix: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """softmax(scale q [P_k; k]^T) [P_v; v].   q: (B, H, T, D), k, v: (B, H, S, D) bfloat16 -> (B, H, T, D), tokens' heads side by
    side in memory.

    mask: bool, (B or 1, H or 1, T or 1, P + S), true where a query sees a key. A query that sees none has the mean of all.
    prefix: P_k and P_v (N, H, P, D), of any dtype. MemoryError where there is no room for a head.
    """
    q, k, v = (_even(x) for x in (q, k, v))
    first = prefix or (None, None)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, *first)):
        return _Attention.apply(q, k, v, mask, scale, *first)  # type: ignore[no-any-return]
    return _forward(q, k, v, _together(q, *first), mask, scale, None)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, both: Tensor | None, mask: Tensor | None, scale: float, kept: Tensor | None
) -> Tensor:
    out = _heads(q, q.shape[2])
    LIBRARY.run("attention_forward", _shape(q, k, v, out, both, mask, scale), q, k, v, *_each(both), mask, out, kept)
    return out


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        key: Tensor | None,
        value: Tensor | None,
    ) -> Tensor:
        kept, both = q.new_empty(*q.shape[:3], 2, dtype=torch.float32), _together(q, key, value)
        ctx.save_for_backward(q, k, v, both, mask, kept)
        ctx.scale = scale
        ctx.dtypes = () if key is None or value is None else (key.dtype, value.dtype)
        return _forward(q, k, v, both, mask, scale, kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] - the wrapper hides the names
        q, k, v, both, mask, kept = ctx.saved_tensors
        grad = _even(grads[0])
        queries, keys = q.shape[2], k.shape[2]
        # Side by side where they can be, as the product before them wants them.
        for_q, for_k, for_v = _heads(q, queries, 3) if queries == keys else (_heads(q, queries), *_heads(q, keys, 2))
        shape = _shape(q, k, v, grad, both, mask, ctx.scale)
        to = _shape(for_q, for_k, for_v, grad, None, None, ctx.scale)
        found = [x if need else None for x, need in zip((for_q, for_k, for_v), ctx.needs_input_grad, strict=False)]
        apart = None
        if any(ctx.needs_input_grad[5:]):
            _, count, heads, length, width = both.shape
            apart = q.new_empty(2, count, len(q) // count, heads, length, width, dtype=torch.float32)
        given = (q, k, v, *_each(both), mask, kept, grad, *found, *_each(apart))
        LIBRARY.run("attention_backward", shape, ctypes.byref(to), *given)
        if apart is None:
            return *found, None, None, None, None
        summed = apart.sum(2)
        return *found, None, None, *(own.to(dtype) for own, dtype in zip(summed, ctx.dtypes, strict=True))


def _together(q: Tensor, key: Tensor | None, value: Tensor | None) -> Tensor | None:
    """(2, N, H, P, D), as q's numbers are."""
    if key is None or value is None:
        return None
    both = q.new_empty(2, *key.shape)
    both[0].copy_(key)
    both[1].copy_(value)
    return both


def _each(both: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if both is None else (both[0], both[1])


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


def _shape(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, both: Tensor | None, mask: Tensor | None, scale: float
) -> _Shape:
    rows, heads, queries, width = q.shape
    before, each, prefix = (
        (0, 1, (0, 0, 0)) if both is None else (both.shape[3], rows // both.shape[1], both.stride()[1:4])
    )
    keys = before + k.shape[2]
    seen = (0, 0, 0, 0) if mask is None else mask.expand(rows, heads, queries, keys).stride()
    strides = *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *prefix
    return _Shape(rows, heads, queries, keys, width, before, each, *strides, *seen, scale)


LIBRARY = Library("attention", _agrees)
