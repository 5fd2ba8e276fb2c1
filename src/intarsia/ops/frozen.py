"""Products with frozen matrices: one product for all layers that read the same states, and on a CPU with AMX in the layout that
oneDNN multiplies with.

Autograd would add up the layers' gradients of the states, each written and read again; a product with the layers' matrices one
below the other does that on its way, and reads the states once.

A plain product in bf16 on a CPU with AMX brings the matrix into oneDNN's layout at every call, and writes the bias down before it
adds the product to it, which takes as long as the product itself where rows are a few hundred. torch's own compiler uses the same
two operators for frozen weights.

N inputs, M outputs of all layers together, ... any leading axes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F

ROWS = 1024
"""A middling number of rows: oneDNN asks for one before it says which layout it likes."""


class Reordered:
    """Frozen matrices one below the other, in layouts of oneDNN's; each is made when a product first wants it."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        """parts: (outputs, N) each, M in all, float32 or bfloat16 on a CPU that multiplies it. They must stay as they are."""
        self.parts = [part.detach() for part in parts]
        self.reads, self.writes = parts[0].shape[1], sum(len(part) for part in parts)
        self.made: dict[tuple[bool, int], Tensor] = {}
        """By whether it is the transpose, and the number of rows that oneDNN was told."""

    def forward(self, rows: int) -> Tensor:
        """The (M, N) matrix, for a product with so many rows of states."""
        return self._layout(transposed=False, told=1 if _left_to_one(rows, self.reads, self.writes) else ROWS)

    def backward(self, rows: int) -> Tensor:
        """Its transpose, likewise."""
        return self._layout(transposed=True, told=1 if _left_to_one(rows, self.writes, self.reads) else ROWS)

    def _layout(self, *, transposed: bool, told: int) -> Tensor:
        if (found := self.made.get((transposed, told))) is None:
            # A server's first pass is in inference mode, and what is made in it could never be trained through.
            with torch.inference_mode(False), torch.no_grad():
                whole = torch.cat(self.parts) if len(self.parts) > 1 else self.parts[0]
                whole = whole.mT.contiguous() if transposed else whole
                found = self.made[transposed, told] = torch.ops.mkldnn._reorder_linear_weight(whole, told)
        return found


def _left_to_one(rows: int, reads: int, writes: int) -> bool:
    """Whether oneDNN 3.10 would leave a product in the layout for many rows to one of two threads, as it does where outputs are no
    more than inputs and rows are about as many as they; in the layout for one row both work, 1.2 to 1.9 times as fast. Seen for 384
    to 1,024 outputs with AMX (benchmarks/bench_frozen_layouts.py looks again); with four threads that layout is slower."""
    if torch.get_num_threads() != 2 or writes > min(reads, 1024):
        return False
    most = 1.4 if reads < 3 * writes else 2.25 if writes < 512 else 1.55
    return 2 * writes <= 3 * rows and rows <= most * writes


def frozen_linear(
    x: Tensor, weight: Tensor | Reordered, bias: Tensor | None, sizes: Sequence[int]
) -> tuple[Tensor, ...]:
    """x W^T + bias of several layers whose weights stand one below the other, with a gradient for x alone.

    x: (..., N), weight: (M, N), bias: (M,), sizes: the layers' outputs, M in all. Returns (..., size) each, perhaps columns of one
    tensor.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _Linear.apply(x, weight, bias, sizes)  # type: ignore[no-any-return]
    return _product(x, weight, bias).split(tuple(sizes), dim=-1)


def _product(x: Tensor, weight: Tensor | Reordered, bias: Tensor | None) -> Tensor:
    return _fast(x, weight.forward(_rows(x)), bias) if isinstance(weight, Reordered) else F.linear(x, weight, bias)


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def _fast(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x.contiguous(), weight, bias, "none", [], "")  # type: ignore[no-any-return]


class _Linear(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | Reordered, bias: Tensor | None, sizes: Sequence[int]
    ) -> tuple[Tensor, ...]:
        ctx.weight = weight
        own = tuple(sizes)
        if isinstance(weight, Reordered) or len(own) == 1:
            return _product(x, weight, bias).split(own, dim=-1)
        # One product would be one tensor, kept for the sake of any of its parts: where a task has put another in one part's place
        # (LoRA, a prefix), that would be two. On a GPU one product here was no faster than three.
        biases: Sequence[Tensor | None] = [None] * len(own) if bias is None else bias.split(own)
        return tuple(F.linear(x, w, b) for w, b in zip(weight.split(own), biases, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] - the wrapper hides the names
        grad, weight = side_by_side(grads), ctx.weight
        if isinstance(weight, Reordered):
            return _fast(grad, weight.backward(_rows(grad)), None), None, None, None
        return grad @ weight, None, None, None


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
