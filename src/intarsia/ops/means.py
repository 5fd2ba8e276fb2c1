"""Means over the tokens of each row, where rows lie one after the other."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn import functional as F

from intarsia.ops.once import once_differentiable


def row_means(states: Tensor, owner: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """The mean of each row's states.   states: (n, S, D); owner: (n, S) int64, the row of each column, -1: of none.
    Returns (n, R, D) in dtype, at least as wide as the states'; zeros for a row without columns."""
    return _Means.apply(states, owner, rows, dtype)  # type: ignore[no-any-return]


class _Means(Function):
    """A product with each row's columns, as precise as a sum and without a scatter; backward each column reads its row's gradient.
    The states are never copied to the wider dtype."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, owner: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
        mine = owner[:, None] == torch.arange(rows, device=states.device)[:, None]
        counts = mine.sum(-1, keepdim=True).clamp(min=1)
        ctx.save_for_backward(owner, counts)
        ctx.dtype = states.dtype
        if states.is_cuda and dtype == torch.float32 != states.dtype:
            return torch.bmm(mine.to(states.dtype), states, out_dtype=dtype) / counts
        return mine.to(dtype) @ states.to(dtype) / counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] - the wrapper hides the names
        owner, counts = ctx.saved_tensors
        each = F.pad((grads[0] / counts).to(ctx.dtype), (0, 0, 0, 1))  # zeros behind the last row, for columns of none
        members, rows, _ = each.shape
        where = owner.remainder(rows) + rows * torch.arange(members, device=owner.device)[:, None]
        return each.flatten(0, 1).index_select(0, where.flatten()).view(*owner.shape, -1), None, None, None
