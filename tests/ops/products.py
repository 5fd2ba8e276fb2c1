"""Inputs of products with frozen matrices, shared by their tests."""

import pytest
import torch

from intarsia.ops.native import products as native

there = pytest.mark.skipif(not native.LIBRARY.there(), reason="needs a C compiler and torch with GNU OpenMP")


def draw(leading, inputs, outputs, *, with_bias=True):
    """x, weight, bias and a gradient, all of numbers that bf16 has."""
    g = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(*leading, n, generator=g).bfloat16() for n in (inputs, outputs))
    weight = (torch.randn(outputs, inputs, generator=g) * inputs**-0.5).bfloat16()
    return x.requires_grad_(), weight, torch.randn(outputs, generator=g).bfloat16() if with_bias else None, grad


def near(found, wanted):
    """Within bf16's rounding of a sum in float32."""
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=5e-3, atol=1e-3)
