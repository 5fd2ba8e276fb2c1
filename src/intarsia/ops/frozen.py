"""Products with frozen matrices: one product for all layers that read the same states, and on a CPU with AMX a kernel of
our own.

Autograd would add up the layers' gradients of the states, each written and read again; a product with the layers' matrices one
below the other does that on its way, and reads the states once.

N inputs, M outputs of all layers together, ... any leading axes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn import functional as F

from intarsia.ops.native.activations import bent_from
from intarsia.ops.native.products import Panels
from intarsia.ops.once import once_differentiable


def frozen_linear(x: Tensor, weight: Tensor | Panels, bias: Tensor | None, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """x W^T + bias of several layers whose weights stand one below the other, with a gradient for x alone.

    x: (..., N), weight: (M, N), bias: (M,), sizes: the layers' outputs, M in all. Returns (..., size) each, perhaps columns of one
    tensor.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        if isinstance(weight, Panels) and len(sizes) == 1:
            if (bent := bent_from(x)) is not None:
                inner, non_linearity = bent
                return (_OfActivation.apply(inner, x.detach(), weight, bias, non_linearity),)  # type: ignore[return-value]
            return (_Made(weight).output(x, bias),)
        return _Linear.apply(x, weight, bias, sizes)  # type: ignore[no-any-return]
    return _product(x, weight, bias).split(tuple(sizes), dim=-1)


def _product(x: Tensor, weight: Tensor | Panels, bias: Tensor | None) -> Tensor:
    return weight.forward(x, bias) if isinstance(weight, Panels) else F.linear(x, weight, bias)


class _Made:
    """What a product has made: its output, and what an activation will make of that, if one has read it the last time."""

    def __init__(self, weight: Panels) -> None:
        self.weight = weight
        self._values: Tensor | None = None
        self._name, self._version = weight.follower, 0
        weight.follower = None  # until it is known again

    def output(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + bias, which knows of this."""
        (y,) = _Linear.apply(x, self.weight, bias, (1,), self)  # type: ignore[misc]
        self._version = y._version
        y._intarsia_made = self
        return y

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What it computes."""
        if self._name is None:
            return self.weight.forward(x, bias)
        y, self._values = self.weight.forward_activated(x, bias, self._name)
        return y

    def taken(self, y: Tensor, name: str) -> Tensor | None:
        """f(y), if it is there and y has not been changed since. The product will know the next time that it is wanted."""
        values, self._values, self.weight.follower = self._values, None, name
        return values if name == self._name and y._version == self._version else None


class _Linear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | Panels,
        bias: Tensor | None,
        sizes: Sequence[int],
        made: _Made | None = None,
    ) -> tuple[Tensor, ...]:
        ctx.weight = weight
        own = tuple(sizes)
        if made is not None:
            return (made.product(x, bias),)
        if len(own) == 1:  # not as a view, which nobody could change in place
            return (_product(x, weight, bias),)
        if isinstance(weight, Panels):
            return _product(x, weight, bias).split(own, dim=-1)
        # One product would be one tensor, kept for the sake of any of its parts: where a task has put another in one part's place
        # (LoRA, a prefix), that would be two. On a GPU one product here was no faster than three.
        biases: Sequence[Tensor | None] = [None] * len(own) if bias is None else bias.split(own)
        return tuple(F.linear(x, w, b) for w, b in zip(weight.split(own), biases, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] - the wrapper hides the names
        grad, weight = side_by_side(grads), ctx.weight
        return weight.backward(grad) if isinstance(weight, Panels) else grad @ weight, None, None, None, None


class _OfActivation(Function):
    """x W^T + bias of x = f(inner), with a gradient for inner: its slopes are met where the product for x's gradient is written."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor, x: Tensor, weight: Panels, bias: Tensor | None, non_linearity: str) -> Tensor:
        ctx.save_for_backward(inner)
        ctx.weight, ctx.non_linearity = weight, non_linearity
        return weight.forward(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] - the wrapper hides the names
        (inner,) = ctx.saved_tensors
        found = ctx.weight.backward(grads[0], inner.contiguous(), ctx.non_linearity)
        return found, None, None, None, None


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """The parts (..., size) as one (..., M), without a copy where they lie in one row of memory, as what a kernel of ours gives."""
    first, width, at = parts[0], 0, parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != at or part.stride() != first.stride() or part.stride(-1) != 1:
            return torch.cat(list(parts), dim=-1)
        width, at = width + part.shape[-1], at + part.shape[-1] * part.element_size()
    if len(parts) == 1:
        return first
    # The same memory to its end, and no row of it in the next one's place.
    room = first.untyped_storage().nbytes() // first.element_size() - first.storage_offset()
    needs = sum((size - 1) * stride for size, stride in zip(first.shape[:-1], first.stride(), strict=False)) + width
    if needs > room or min(first.stride()[:-1], default=width) < width:
        return torch.cat(list(parts), dim=-1)
    return first.as_strided((*first.shape[:-1], width), first.stride())
