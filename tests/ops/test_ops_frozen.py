"""A product with frozen matrices is the product: values and the gradient of x, whatever the sizes, leading axes and layouts."""

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from intarsia import ops
from intarsia.ops.frozen import side_by_side
from intarsia.ops.native import products as native
from ops.products import draw, near, there
from ops.wrong_code import is_refused

LEADING = [(1,), (7,), (2, 32), (3, 1, 11), (2, 53), (0,)]


@there
@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 32), (64, 160), (384, 96)])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_panels_give_the_values_and_gradients_of_a_linear_layer(leading, inputs, outputs, with_bias):
    x, weight, bias, grad = draw(leading, inputs, outputs, with_bias=with_bias)
    (found,) = ops.frozen_linear(x, ops.Panels([weight]), bias, [outputs])
    wide = x.detach().double().requires_grad_()
    wanted = F.linear(wide, weight.double(), None if bias is None else bias.double())
    near(found, wanted)
    near(torch.autograd.grad(found, x, grad)[0], torch.autograd.grad(wanted, wide, grad.double())[0])


@there
def test_a_rows_numbers_depend_on_neither_its_neighbours_nor_the_threads():
    x, weight, bias, _ = draw((300,), 64, 160)
    panels, before = ops.Panels([weight]), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = panels.forward(x, bias)
        for threads in (1, 2, 3, 7, 64):
            torch.set_num_threads(threads)
            for begin, end in ((0, 300), (0, 1), (5, 38), (299, 300), (17, 210)):
                assert torch.equal(panels.forward(x[begin:end], bias), wanted[begin:end])
    finally:
        torch.set_num_threads(before)


@there
def test_a_transposed_input_and_gradient_are_read_as_they_lie():
    weight = draw((1,), 32, 64)[1]
    x = torch.randn(4, 32, 8, generator=torch.Generator().manual_seed(1)).bfloat16().mT.detach().requires_grad_()
    wide = x.detach().double().requires_grad_()
    grad = torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(2)).bfloat16().mT
    (found,) = ops.frozen_linear(x, ops.Panels([weight]), None, [64])
    wanted = F.linear(wide, weight.double())
    near(found, wanted)
    near(torch.autograd.grad(found, x, grad)[0], torch.autograd.grad(wanted, wide, grad.double())[0])


@there
def test_what_is_no_number_is_not_hidden_and_all_is_written():
    """torch fills new tensors with NaN here."""
    x, weight, bias, _ = draw((75,), 64, 96)
    x = x.detach().clone()
    torch.use_deterministic_algorithms(True)
    try:
        assert bool(ops.Panels([weight]).forward(x, bias).isfinite().all())
        x[70, 3] = torch.nan
        out = ops.Panels([weight]).forward(x, bias)
        assert bool(out[70].isnan().all())
        assert int(out.isnan().any(-1).sum()) == 1
    finally:
        torch.use_deterministic_algorithms(False)


@there
def test_states_of_another_width_are_refused():
    _, weight, bias, _ = draw((1,), 64, 96)
    with pytest.raises(RuntimeError, match="matrices of 64 inputs cannot multiply states of 32 numbers"):
        ops.Panels([weight]).forward(torch.zeros(5, 32).bfloat16(), bias)


@there
def test_what_is_traced_multiplies_the_states_that_come():
    x, weight, bias, _ = draw((7,), 64, 96)
    panels = ops.Panels([weight])
    for product in (
        lambda x: panels.forward(x, bias),
        lambda x: panels.forward_activated(x, bias, "gelu")[1],
        lambda x: panels.backward(x @ weight.mT),
    ):
        near(make_fx(product)(torch.zeros_like(x))(x.detach()), product(x.detach()).double())


@pytest.mark.parametrize("layout", ["plain", pytest.param("panels", marks=there)])
def test_what_is_given_back_may_be_changed_in_place(layout):
    x, weight, bias, grad = draw((7,), 64, 96)
    found = []
    for factor in (1, 2):
        (out,) = ops.frozen_linear(x, weight if layout == "plain" else ops.Panels([weight]), bias, [96])
        found.append(torch.autograd.grad(out.mul_(factor), x, grad)[0])
    near(found[1], 2 * found[0].double())


@there
def test_which_matrices_it_is_for(monkeypatch):
    weight = draw((1,), 32, 64)[1]
    monkeypatch.setattr(native, "amx", lambda: False)
    assert not native.takes([weight])
    monkeypatch.setattr(native, "amx", lambda: True)
    assert native.takes([weight, weight])
    assert not native.takes([weight.float()])
    assert not native.takes([weight, weight[:, :31]])
    assert not native.takes([weight[:40]])


@there
def test_machine_code_that_computes_something_else_is_not_used(monkeypatch, caplog):
    """A bias is forgotten; rows behind the last whole block are those before it."""
    right = native.LIBRARY.run

    def biasless(name, shape, *more):
        right(name, shape, *(m if i != 2 else None for i, m in enumerate(more)))

    def repeated(name, shape, *more):
        right(name, shape, *more)
        if name == "multiply" and len(more[4]) > 64:
            more[4][64:] = more[4][53:64]

    for wrong in (biasless, repeated):
        is_refused(native.LIBRARY, wrong, monkeypatch, caplog)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", [(7,), (2, 3)], ids=str)
@pytest.mark.parametrize("layout", ["plain", pytest.param("panels", marks=there)])
def test_several_layers_at_once_are_each_of_them(with_bias, rows, layout):
    panels = layout == "panels"
    tol = {"rtol": 1e-2, "atol": 5e-3} if panels else {"rtol": 1e-12, "atol": 1e-12}
    g, sizes, inputs = torch.Generator().manual_seed(0), [64, 32, 96] if panels else [5, 3, 4], 32 if panels else 6
    kind = torch.bfloat16 if panels else torch.float64
    x = torch.randn(*rows, inputs, generator=g).to(kind).requires_grad_()
    weight = (torch.randn(sum(sizes), inputs, generator=g) * inputs**-0.5).to(kind)
    bias = torch.randn(sum(sizes), generator=g).to(kind) if with_bias else None
    found = ops.frozen_linear(x, ops.Panels(weight.split(sizes)) if panels else weight, bias, sizes)
    wide = x.detach().double().requires_grad_()
    wanted = F.linear(wide, weight.double(), None if bias is None else bias.double()).split(sizes, dim=-1)
    grads = [torch.randn(one.shape, generator=g).to(kind) for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, **tol)
    (own,) = torch.autograd.grad(found, x, grads, retain_graph=True)
    (other,) = torch.autograd.grad(wanted, wide, [one.double() for one in grads], retain_graph=True)
    torch.testing.assert_close(own.double(), other, **tol)
    # One that nobody used has a gradient of zeros.
    (own,) = torch.autograd.grad(found[1], x, grads[1])
    (other,) = torch.autograd.grad(wanted[1], wide, grads[1].double())
    torch.testing.assert_close(own.double(), other, **tol)
    with torch.no_grad():
        again = ops.frozen_linear(x, ops.Panels(weight.split(sizes)) if panels else weight, bias, sizes)
        for one, other in zip(again, wanted, strict=True):
            torch.testing.assert_close(one.double(), other, **tol)


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
