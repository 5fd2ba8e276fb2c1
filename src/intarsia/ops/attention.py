"""Attention of half precision on a CPU, where torch's own takes several times as long backward as in fp32.

Without gradients torch's kernel is good, for a few queries the best. Else ours computes it where it can (`native/attention.py`);
what is left is written out as two products and a softmax.

B rows, H heads, T queries, S keys, D width of a head; N prefixes of P positions, each for B / N neighbouring rows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn import functional as F

from intarsia.ops.native import attention as native
from intarsia.ops.once import once_differentiable

MANY = 16
"""Queries from which on our kernel is quicker than torch's: fewer do not fill a vector's lanes."""


def product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float = 0.0,
    prefix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """softmax(scale q [P_k; k]^T + mask) [P_v; v].   q: (B, H, T, D), k, v: (B, H, S, D) -> (B, H, T, D).

    mask: what is added to the scores, (B or 1, H or 1, T or 1, P + S); or bool, true where a query sees a key; None: it sees all. A
    query that sees no key has the mean of all, or zeros. The softmax is fp32 or wider. dropout: of the probabilities. prefix: keys
    and values (N, H, P, D).
    """
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, *(prefix or ())))
    if not dropout and (learns or q.shape[2] >= MANY) and native.takes(q, k, v, mask):
        return native.attention(q, k, v, mask, scale, prefix)
    if prefix is not None:
        k, v = (with_prefix(own, x) for own, x in zip(prefix, (k, v), strict=True))
    added = mask if mask is None or mask.dtype == torch.bool else mask.to(q.dtype)
    if not learns:
        return F.scaled_dot_product_attention(q, k, v, added, dropout, scale=scale)
    if not dropout and (mask is None or mask.dtype == torch.bool):
        return _Products.apply(q, k, v, mask, scale)  # type: ignore[no-any-return]
    scores = (q * scale) @ k.mT
    if added is not None:
        scores = scores.masked_fill(~added, _lowest(scores)) if added.dtype == torch.bool else scores + added
    return F.dropout(_softmax(scores), dropout) @ v


def with_prefix(prefix: Tensor, x: Tensor) -> Tensor:
    """(N, H, P, D) and (B, H, S, D) -> (B, H, P + S, D), in one copy."""
    count = prefix.shape[0]
    each = x.unflatten(0, (count, x.shape[0] // count))
    return torch.cat([prefix.to(x.dtype)[:, None].expand(-1, each.shape[1], -1, -1, -1), each], dim=3).flatten(0, 1)


def _lowest(scores: Tensor) -> float:
    """Not minus infinity: the softmax of a row that has nothing else would be nan."""
    return torch.finfo(scores.dtype).min


def _softmax(scores: Tensor) -> Tensor:
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, -1, dtype=wide).to(scores.dtype)


def _scaled(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """scale x y, without a pass of its own for the scale."""
    return torch.baddbmm(x.new_empty(1), x, y, beta=0, alpha=scale)


class _Products(Function):
    """Without dropout, and with a mask that has no gradient: fewer passes over the scores than autograd makes of the same."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        rows, heads, queries, _ = q.shape
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        if mask is None:
            scores = _scaled(q, k.mT, scale)
        else:  # the product is added to what hides: filling in afterwards would be a slow pass more
            hidden = q.new_zeros(mask.shape).masked_fill_(~mask, _lowest(q))
            scores = hidden.expand(rows, heads, queries, -1).contiguous().flatten(0, 1)
            scores.baddbmm_(q, k.mT, alpha=scale)
        probabilities = _softmax(scores)
        ctx.save_for_backward(q, k, v, probabilities)
        ctx.scale = scale
        return torch.bmm(probabilities, v).view(rows, heads, queries, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] - the wrapper hides the names
        q, k, v, probabilities = ctx.saved_tensors
        by_head, grad = grads[0].shape[:2], grads[0].flatten(0, 1)
        inner = torch.bmm(grad, v.mT)
        inner = torch._softmax_backward_data(inner, probabilities, -1, inner.dtype)
        for_q = _scaled(inner, k, ctx.scale) if ctx.needs_input_grad[0] else None
        for_k = _scaled(inner.mT, q, ctx.scale) if ctx.needs_input_grad[1] else None
        for_v = torch.bmm(probabilities.mT, grad) if ctx.needs_input_grad[2] else None
        return *(None if x is None else x.unflatten(0, by_head) for x in (for_q, for_k, for_v)), None, None
