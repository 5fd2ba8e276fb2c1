"""The definition of each operation in plain torch. A fast version may be faster, never different.

One legend: B rows, T tokens (any number of inner axes), D width, R rank, M bottleneck width, N tasks.

The rows belong to the N tasks in N equal runs: row i to task i // (B / N). With N = 1 every row is of that task, and the rows
may be laid out in any way, (B, T, D) or (B * T, D); with N = B each row has tensors of its own.
"""

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.ops.pieces import Pieces, add_by_piece_, linear_by_piece

Activation = Callable[[Tensor], Tensor]


class Own(NamedTuple):
    """A frozen norm: gain n(x) + bias."""

    gain: Tensor
    """(D,)"""
    bias: Tensor | None
    """(D,)"""
    eps: float
    centre: bool
    """Whether the mean is subtracted (LayerNorm)."""
    alone: bool = False
    """Whether nobody else reads what is normed: where no gradients are wanted, its memory may be the result's."""


Weight = Tensor | Pieces
"""(N, D_out, D_in), or what stands for it."""


def linear(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """out[i] = weight[n] x[i] + bias[n].   x: (B, T, D_in), weight: (N, D_out, D_in), bias: (N, D_out) or None -> (B, T, D_out)."""
    if isinstance(weight, Pieces):
        return linear_by_piece(x, weight, bias)
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    tasks, writes, reads = weight.shape
    if tasks == 1:
        # Not weight[0]: its gradient would be written into a tensor of zeros.
        return F.linear(x, weight.squeeze(0), None if bias is None else bias.squeeze(0))
    rows = x.reshape(tasks, x.numel() // (tasks * reads), reads)
    product = rows @ weight.mT if bias is None else torch.baddbmm(bias[:, None], rows, weight.mT)
    return product.view(*x.shape[:-1], writes)


def add_linear_(y: Tensor, x: Tensor, weight: Weight, bias: Tensor | None, alpha: float = 1.0) -> Tensor:
    """y[i] += alpha (weight[n] x[i] + bias[n]), written into y without a copy of its size; takes no gradients.

    y: (B, T, D_out), perhaps some columns of a wider tensor; x, weight, bias: as for `linear`. Returns y.
    """
    x = x.to(y.dtype)
    try:
        rows = y.view(-1, y.shape[-1])
    except RuntimeError:  # its rows are not one behind the other
        return y.add_(linear(x, weight, bias), alpha=alpha)
    if isinstance(weight, Pieces):
        add_by_piece_(rows, x.reshape(-1, x.shape[-1]), weight, alpha)
    else:
        weight = weight.to(y.dtype)
        tasks, writes, reads = weight.shape
        if tasks == 1:
            rows.addmm_(x.reshape(-1, reads), weight.squeeze(0).T, alpha=alpha)
        else:
            rows.view(tasks, -1, writes).baddbmm_(x.reshape(tasks, -1, reads), weight.mT, alpha=alpha)
    return y if bias is None else y.add_(per_task(bias, y), alpha=alpha)


def bottleneck(
    x: Tensor,
    down: Weight,
    down_bias: Tensor,
    up: Weight,
    up_bias: Tensor,
    activation: Activation,
    dropout: float = 0.0,
) -> Tensor:
    """out[i] = up[n] activation(down[n] x[i] + down_bias[n]) + up_bias[n].

    x: (B, T, D), down: (N, M, D), down_bias: (N, M), up: (N, D_out, M), up_bias: (N, D_out). Returns (B, T, D_out).
    `dropout` is the probability with which entries of the inner activation are zeroed; 0 outside training.
    """
    hidden = activation(linear(x, down, down_bias))
    if dropout:
        hidden = F.dropout(hidden, dropout)
    return linear(hidden, up, up_bias)


def add_low_rank(y: Tensor, x: Tensor, a: Weight, b: Weight, alpha: float = 1.0) -> Tensor:
    """out[i] = y[i] + alpha b[n] a[n] x[i], the sum within the second product.

    y: (B, T, D_out), x: (B, T, D_in), a: (N, R, D_in), b: (N, D_out, R). Returns (B, T, D_out).
    """
    inner = linear(x, a, None)
    if isinstance(b, Pieces):
        return y.add(linear(inner, b, None), alpha=alpha)
    b = b.to(x.dtype)
    tasks, writes, rank = b.shape
    if tasks == 1:
        return torch.addmm(y.reshape(-1, writes), inner.reshape(-1, rank), b.squeeze(0).T, alpha=alpha).view(y.shape)
    rows, inner = y.reshape(tasks, -1, writes), inner.reshape(tasks, -1, rank)
    return torch.baddbmm(rows, inner, b.mT, alpha=alpha).view(y.shape)


def per_task(vector: Tensor, like: Tensor) -> Tensor:
    """vector: (N, D) -> each row's own vector in `like`'s dtype, shaped to be added to `like`: (D,), or (B, ..., D)."""
    vector = vector.to(like.dtype)
    if len(vector) == 1:
        return vector.squeeze(0)
    if len(vector) < like.shape[0]:
        vector = vector.repeat_interleave(like.shape[0] // len(vector), dim=0)
    return vector.view(like.shape[0], *(1,) * (like.dim() - 2), vector.shape[-1])


def whole_norm(x: Tensor, own: Own, gain: Tensor, bias: Tensor | None) -> Tensor:
    """out[i] = (own gain + gain[n]) n(x[i]) + own bias + bias[n].   x: (B, ..., D), gain: (N, D), bias: (N, D), or None as the
    norm's own -> (B, ..., D). The sums are fp32 or wider: half precision would lose small differences beside a gain of 1."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # Differences are rounded as the bank keeps them, so that a task in training and a stored one give the same.
    gains = own.gain.to(wide) + gain.to(x.dtype).to(wide)
    biases = None if bias is None or own.bias is None else own.bias.to(wide) + bias.to(x.dtype).to(wide)
    # Task by task: a product and a sum behind a norm for all rows would round it first, and be kept for gradients.
    rows = (x,) if len(gain) == 1 else x.unflatten(0, (len(gain), -1)).unbind()
    each: Iterable[Tensor | None] = repeat(None) if biases is None else biases.unbind()
    if own.centre and (x.dtype == wide or x.device.type == "cpu"):  # whose kernel takes a wider gain
        # Not F's, and nothing of ours around it: that would be a tenth of the time for one task's few rows.
        normed = map(torch.layer_norm, rows, repeat(x.shape[-1:]), gains.unbind(), each, repeat(own.eps))
    else:
        normed = map(_normed, rows, gains.unbind(), each, repeat(own))
    if len(gain) == 1:
        return next(normed)
    if own.alone and not torch.is_grad_enabled():
        for row, out in zip(rows, normed, strict=True):
            row.copy_(out)  # while both are in the cache, which other memory for all rows is not
        return x
    return torch.cat(list(normed))


def _normed(x: Tensor, gain: Tensor, bias: Tensor | None, own: Own) -> Tensor:
    """gain, bias: (D,)"""
    out = normalise(x, own.eps, centre=own.centre) * gain  # rounded before the gain, as transformers' RMSNorms are
    return (out if bias is None else out + bias).to(x.dtype)


def frozen_norm(x: Tensor, own: Own) -> Tensor:
    """own gain n(x) + own bias.   x: (..., D)"""
    if own.centre:
        return F.layer_norm(x, x.shape[-1:], own.gain, own.bias, own.eps)
    return F.rms_norm(x, x.shape[-1:], own.gain, own.eps)


def norm_change(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor | None, eps: float, *, centre: bool) -> Tensor:
    """out[i] = y[i] + gain[n] n(x[i]) + bias[n].   x, y: (B, ..., D), gain: (N, D), bias: (N, D) or None -> (B, ..., D)."""
    if centre and len(gain) == 1:  # torch's own kernel knows gain and bias, and both their gradients in one pass
        own = None if bias is None else per_task(bias, x)
        return y + F.layer_norm(x, x.shape[-1:], per_task(gain, x), own, eps)
    out = y + normalise(x, eps, centre=centre) * per_task(gain, y)
    return out if bias is None else out + per_task(bias, y)


def norm_change_(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor | None, eps: float, *, centre: bool) -> Tensor:
    """`norm_change` written into y, which it returns; takes no gradients."""
    if centre and len(gain) == 1:
        return y.add_(
            F.layer_norm(x, x.shape[-1:], per_task(gain, x), None if bias is None else per_task(bias, x), eps)
        )
    y.addcmul_(normalise(x, eps, centre=centre), per_task(gain, y))
    return y if bias is None else y.add_(per_task(bias, y))


def normalise(x: Tensor, eps: float, *, centre: bool) -> Tensor:
    """A LayerNorm (centre) or RMSNorm without gain and bias, over the last axis; statistics in fp32 as transformers does."""
    if centre:
        return F.layer_norm(x, x.shape[-1:], eps=eps)
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (B, H, T, D) and keys (B, H_kv, T, D), each pair of numbers (i, i + D/2) turned by its token's angle (RoPE, Su et al.
    2021). cos, sin: (B or 1, T, D)."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    return turned(q), turned(k)
