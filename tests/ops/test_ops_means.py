"""Means of rows that lie one after the other, against sums in a loop."""

import pytest
import torch

from intarsia.ops import row_means
from ops.on_device import DEVICE


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
def test_each_row_has_the_mean_of_its_columns(dtype, tol):
    owner = torch.tensor([[0, 0, 1, -1, 2, 2, 2, -1], [-1, 0, -1, 2, 2, -1, -1, -1]], device=DEVICE)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    states = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype).requires_grad_()
    made = row_means(states, owner, 4, wide)
    assert made.dtype == wide
    double = states.detach().double().requires_grad_()
    expected = torch.zeros(2, 4, 5, dtype=torch.float64, device=DEVICE)
    for member, rows in enumerate(([[0, 1], [2], [4, 5, 6]], [[1], [], [3, 4]])):
        for row, columns in enumerate(rows):
            if columns:
                expected[member, row] = double[member, columns].mean(0)
    torch.testing.assert_close(made.double(), expected, rtol=1e-6, atol=1e-6 if wide == torch.float32 else 1e-14)
    weights = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    (own,), (other,) = (torch.autograd.grad((x * weights).sum(), s) for x, s in ((made, states), (expected, double)))
    assert own.dtype == dtype
    assert not own[owner < 0].any()
    torch.testing.assert_close(own.double(), other, rtol=tol, atol=tol)
