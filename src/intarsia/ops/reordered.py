"""Products with a frozen matrix in the layout that oneDNN multiplies with, for CPUs with AMX.

A plain product in bf16 there brings the matrix into that layout at every call, and writes the bias down before it adds the product
to it, which takes as long as the product itself where rows are a few hundred. torch's own compiler uses the same two operators for
frozen weights.

N inputs, M outputs, ... any leading axes.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

ROWS = 1024
"""A middling number of rows: the layout may depend on it, the result does not."""


class Reordered(NamedTuple):
    """A frozen matrix, twice."""

    forward: Tensor
    """The (M, N) weight, in a layout of oneDNN's."""
    backward: Tensor
    """Its transpose, likewise."""


def reordered(weight: Tensor) -> Reordered:
    """weight: (M, N), float32 or bfloat16 on a CPU that multiplies it."""
    reorder = torch.ops.mkldnn._reorder_linear_weight
    with torch.no_grad():
        return Reordered(reorder(weight.detach(), ROWS), reorder(weight.detach().mT.contiguous(), ROWS))


def reordered_linear(x: Tensor, weight: Reordered, bias: Tensor | None) -> Tensor:
    """x W^T + bias, with a gradient for x alone.   x: (..., N), bias: (M,) -> (..., M)."""
    return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")  # type: ignore[no-any-return]


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Reordered, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(x, weight.forward, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] - the wrapper hides the names
        return (_product(grads[0], ctx.weight.backward, None) if ctx.needs_input_grad[0] else None), None, None
