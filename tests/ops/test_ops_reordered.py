"""A product with a reordered matrix is the product: values and the gradient of x, whatever the sizes and leading axes."""

import pytest
import torch
from torch.nn import functional as F

from intarsia import ops

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
TYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def usable(dtype):
    try:
        ops.reordered(torch.ones(2, 2, dtype=dtype))
    except RuntimeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [((7,), 33, 50), ((2, 5), 64, 16), ((1, 1), 1, 1), ((3, 1, 4), 8, 24)]
)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients_are_those_of_a_linear_layer(dtype, rows, inputs, outputs, with_bias):
    if why := usable(dtype):
        pytest.skip(why)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(*rows, inputs, generator=g).to(dtype).requires_grad_()
    weight = (torch.randn(outputs, inputs, generator=g) * inputs**-0.5).to(dtype)
    bias = torch.randn(outputs, generator=g).to(dtype) if with_bias else None
    found, wanted = ops.reordered_linear(x, ops.reordered(weight), bias), F.linear(x, weight, bias)
    torch.testing.assert_close(found, wanted, rtol=TYPES[dtype], atol=TYPES[dtype])
    grad = torch.randn(found.shape, generator=g).to(dtype)
    own, other = (torch.autograd.grad(y, x, grad)[0] for y in (found, wanted))
    torch.testing.assert_close(own, other, rtol=TYPES[dtype], atol=TYPES[dtype])


def test_a_transposed_input_and_gradient_are_read_as_they_lie():
    x = torch.randn(6, 4, 8).mT.requires_grad_()
    weight = torch.randn(10, 4)
    layouts = ops.reordered(weight)

    def grad_of(y):
        return torch.autograd.grad(y.mT.cos().sum(), x)[0]

    found = ops.reordered_linear(x.detach().requires_grad_() if x.is_leaf else x, layouts, None)
    torch.testing.assert_close(found, F.linear(x, weight))
    torch.testing.assert_close(
        grad_of(ops.reordered_linear(x, layouts, None)), grad_of(F.linear(x, weight)), rtol=1e-5, atol=1e-5
    )
