"""A product with frozen matrices is the product: values and the gradient of x, whatever the sizes, leading axes and layouts."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from intarsia import ops
from intarsia.ops.frozen import ROWS, side_by_side

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
TYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def usable(dtype):
    try:
        ops.Reordered([torch.ones(2, 2, dtype=dtype)]).forward(1)
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
    found, wanted = ops.frozen_linear(x, ops.Reordered([weight]), bias, [outputs])[0], F.linear(x, weight, bias)
    torch.testing.assert_close(found, wanted, rtol=TYPES[dtype], atol=TYPES[dtype])
    grad = torch.randn(found.shape, generator=g).to(dtype)
    own, other = (torch.autograd.grad(y, x, grad)[0] for y in (found, wanted))
    torch.testing.assert_close(own, other, rtol=TYPES[dtype], atol=TYPES[dtype])


def test_a_transposed_input_and_gradient_are_read_as_they_lie():
    x = torch.randn(4, 6, 8).mT.detach().requires_grad_()
    weight = torch.randn(10, 6)

    def grad_of(y):
        return torch.autograd.grad(y.mT.cos().sum(), x)[0]

    (found,) = ops.frozen_linear(x, ops.Reordered([weight]), None, [10])
    torch.testing.assert_close(found, F.linear(x, weight))
    torch.testing.assert_close(grad_of(found), grad_of(F.linear(x, weight)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", [(7,), (2, 3)], ids=str)
@pytest.mark.parametrize("layout", ["plain", "reordered"])
def test_several_layers_at_once_are_each_of_them(with_bias, rows, layout):
    kind = torch.float32 if layout == "reordered" else torch.float64
    tol = {"rtol": 1e-5, "atol": 1e-5} if layout == "reordered" else {"rtol": 1e-12, "atol": 1e-12}
    g, sizes = torch.Generator().manual_seed(0), [5, 3, 4]
    x = torch.randn(*rows, 6, generator=g, dtype=kind).requires_grad_()
    weight = torch.randn(12, 6, generator=g, dtype=kind)
    bias = torch.randn(12, generator=g, dtype=kind) if with_bias else None
    whole = ops.Reordered(weight.split(sizes)) if layout == "reordered" else weight
    found = ops.frozen_linear(x, whole, bias, sizes)
    wanted = F.linear(x, weight, bias).split(sizes, dim=-1)
    grads = [torch.randn(one.shape, generator=g, dtype=kind) for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **tol)
    (own,), (other,) = (torch.autograd.grad(ys, x, grads, retain_graph=True) for ys in (found, wanted))
    torch.testing.assert_close(own, other, **tol)
    # One that nobody used has a gradient of zeros.
    own, other = (torch.autograd.grad(ys[1].cos().sum(), x)[0] for ys in (found, wanted))
    torch.testing.assert_close(own, other, **tol)
    with torch.no_grad():
        for one, other in zip(ops.frozen_linear(x, whole, bias, sizes), wanted, strict=True):
            torch.testing.assert_close(one, other, **tol)


@pytest.mark.parametrize(
    ("threads", "rows", "inputs", "outputs", "forward", "backward"),
    [
        (2, 300, 384, 384, True, True),
        (2, 848, 1152, 384, True, False),
        (2, 848, 384, 1152, False, True),
        (2, 900, 1536, 384, False, False),  # rows enough for two threads in any layout
        (2, 600, 384, 384, False, False),
        (2, 200, 384, 384, False, False),
        (4, 300, 384, 384, False, False),
        (1, 300, 384, 384, False, False),
    ],
)
def test_two_threads_have_a_layout_of_their_own_where_one_would_be_idle(
    monkeypatch, threads, rows, inputs, outputs, forward, backward
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=g).requires_grad_()
    weight = torch.randn(outputs, inputs, generator=g) * inputs**-0.5
    whole = ops.Reordered([weight])
    (found,) = ops.frozen_linear(x, whole, None, [outputs])
    torch.testing.assert_close(found, F.linear(x, weight), rtol=1e-4, atol=1e-5)
    (own,) = torch.autograd.grad(found.cos().sum(), x)
    (other,) = torch.autograd.grad(F.linear(x, weight).cos().sum(), x)
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    assert whole.made.keys() == {(False, 1 if forward else ROWS), (True, 1 if backward else ROWS)}


def test_neighbours_in_memory_are_joined_without_a_copy_and_all_others_with_one():
    whole = torch.randn(2, 3, 9)
    parts = whole.split([4, 3, 2], dim=-1)
    found = side_by_side(parts)
    assert found.data_ptr() == whole.data_ptr()
    assert torch.equal(found, whole)
    assert side_by_side([whole]) is whole
    numbers = np.arange(8.0)
    others = {
        "copies": [part.clone() for part in parts],
        "another order": [parts[1], parts[0], parts[2]],
        "a gap": [whole[..., :4], whole[..., 5:]],
        "other rows": [whole[0, :, :4], whole[1, :, 4:]],
        "a transposed one": [torch.randn(4, 3).mT, torch.randn(3, 4)],
        "halves of one row": list(torch.arange(12.0).view(2, 2, 3).unbind()),
        "one row twice": [torch.ones(1).expand(3, 1), torch.ones(1).expand(3, 1)],
        # Two memories that happen to be neighbours.
        "the end of a memory": [torch.from_numpy(numbers[at : at + 6]).as_strided((2, 2), (4, 1)) for at in (0, 2)],
    }
    for name, tensors in others.items():
        found = side_by_side(tensors)
        assert torch.equal(found, torch.cat(tensors, dim=-1)), name
        assert all(found.data_ptr() != tensor.data_ptr() for tensor in tensors), name
