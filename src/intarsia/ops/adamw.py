"""AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) over K tasks at once, in place, in torch's order."""

from typing import NamedTuple

import torch
from torch import Tensor

from intarsia.ops.choice import fused


class Rates(NamedTuple):
    """What an update needs of each task; each (K,), in the dtype of the weights."""

    rate: Tensor
    decay: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    correct1: Tensor
    """1 - beta1^t, at step t counted from 1."""
    correct2: Tensor
    """1 - beta2^t."""
    factor: Tensor
    """By which the gradient is multiplied first: clipping."""


def adamw(value: Tensor, low: Tensor | None, first: Tensor, second: Tensor, gradient: Tensor, rates: Rates) -> None:
    """One step. value, first, second: (K, n), the weights and their moments; gradient: (K, n), in any dtype; low: (K, n), the copy
    of the weights in half precision, which follows them. Rows may lie apart, each one's numbers lie together."""
    if fused(value) and value.dtype == torch.float32:
        from intarsia.ops.kernels.adamw import update

        update(value, low, first, second, gradient, torch.stack(rates))
    else:
        _reference(value, first, second, gradient, Rates(*(one[:, None] for one in rates)))
        if low is not None:
            low.copy_(value)


def _reference(value: Tensor, first: Tensor, second: Tensor, gradient: Tensor, rates: Rates) -> None:
    g = gradient.to(value.dtype) * rates.factor
    value.mul_(1 - rates.rate * rates.decay)
    first.add_((g - first) * (1 - rates.beta1))
    second.mul_(rates.beta2).add_(g * g * (1 - rates.beta2))
    value.sub_(rates.rate / rates.correct1 * first / (second.sqrt() / rates.correct2.sqrt() + rates.eps))
