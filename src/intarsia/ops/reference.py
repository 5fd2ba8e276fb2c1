"""The definition of each operation in plain torch. A fast version may be faster, never different.

One legend: B rows, T tokens (any number of inner axes), D width, R rank, M bottleneck width, N tasks.
`route` is (B,) int64 in [0, N): the task of each row. `route=None` says that N is 1 and every row is of that task; then
the rows may be laid out in any way, (B, T, D) or (B * T, D).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, route: Tensor | None) -> Tensor:
    """x: (B, T, D_in), weight: (N, D_out, D_in), bias: (N, D_out) or None. Returns (B, T, D_out)."""
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if route is None:
        return F.linear(x, weight[0], None if bias is None else bias[0])
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    product = (rows @ weight[route].mT).view(*x.shape[:-1], weight.shape[1])
    return product if bias is None else product + per_task(bias, product, route)


def bottleneck(
    x: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    activation: Activation,
    route: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """out[i] = up[n] activation(down[n] x[i] + down_bias[n]) + up_bias[n] with n = route[i].

    x: (B, T, D), down: (N, M, D), down_bias: (N, M), up: (N, D_out, M), up_bias: (N, D_out). Returns (B, T, D_out).
    `dropout` is the probability with which entries of the inner activation are zeroed; 0 outside training.
    """
    hidden = activation(_linear(x, down, down_bias, route))
    if dropout:
        hidden = F.dropout(hidden, dropout)
    return _linear(hidden, up, up_bias, route)


def low_rank(x: Tensor, a: Tensor, b: Tensor, route: Tensor | None = None) -> Tensor:
    """out[i] = b[n] a[n] x[i] with n = route[i].

    x: (B, T, D_in), a: (N, R, D_in), b: (N, D_out, R). Returns (B, T, D_out).
    """
    return _linear(_linear(x, a, None, route), b, None, route)


def per_task(vector: Tensor, like: Tensor, route: Tensor | None = None) -> Tensor:
    """vector: (N, D) -> each row's own vector in `like`'s dtype, shaped to be added to `like`: (B, ..., D)."""
    vector = vector.to(like.dtype)
    if route is None:
        return vector[0]
    return vector[route].view(like.shape[0], *(1,) * (like.dim() - 2), vector.shape[-1])


def normalise(x: Tensor, eps: float, *, centre: bool) -> Tensor:
    """A LayerNorm (centre) or RMSNorm without gain and bias, over the last axis; statistics in fp32 as transformers does."""
    if centre:
        return F.layer_norm(x, x.shape[-1:], eps=eps)
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
