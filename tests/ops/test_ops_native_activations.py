"""The kernel of feed-forwards' activations for bf16 on a CPU: every number that bf16 has, and its slope."""

import pytest
import torch

from intarsia.ops import ACTIVATIONS, activated
from intarsia.ops.native import activations as native
from intarsia.ops.native import compiled
from ops.wrong_code import is_refused

there = pytest.mark.skipif(not native.LIBRARY.there(), reason="needs a C compiler and torch with GNU OpenMP")


@there
@pytest.mark.parametrize("name", native.ACTIVATIONS)
def test_every_number_has_its_value_and_its_slope(name):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = every[every.abs() < 1e9].requires_grad_()  # also a number of them that is no multiple of a vector's
    wide = x.detach().double().requires_grad_()
    out, wanted = native.activation(x, name), ACTIVATIONS[name](wide)
    torch.testing.assert_close(out.double(), wanted, rtol=4e-3, atol=2e-6)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    (slope,), (slopes,) = torch.autograd.grad(out, x, grad), torch.autograd.grad(wanted, wide, grad.double())
    torch.testing.assert_close(slope.double() / grad.double(), slopes / grad.double(), rtol=4e-3, atol=3e-6)


@there
def test_what_is_no_number_stays_none():
    x = torch.tensor([1.0, torch.nan, -1.0]).bfloat16()
    for name in native.ACTIVATIONS:
        assert native.activation(x, name).isnan().tolist() == [False, True, False]


@there
def test_numbers_may_lie_anyhow():
    x = torch.randn(33, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(native.activation(x.T, "gelu"), native.activation(x, "gelu").T)


@there
def test_it_is_for_what_trains_where_products_are_quick(monkeypatch):
    x = torch.randn(3, 5).bfloat16().requires_grad_()
    monkeypatch.setattr(compiled, "amx", lambda: False)
    assert not native.takes(x, "gelu")
    monkeypatch.setattr(compiled, "amx", lambda: True)
    assert native.takes(x, "gelu")
    assert torch.equal(activated(x, "gelu"), native.activation(x, "gelu"))
    assert not native.takes(x.float(), "gelu")
    assert not native.takes(x.detach(), "gelu")
    assert not native.takes(x, "mish")
    assert torch.equal(activated(x, "mish"), ACTIVATIONS["mish"](x))


@there
def test_machine_code_that_computes_something_else_is_not_used(monkeypatch, caplog):
    """A slope is left out."""
    right = native.LIBRARY.run

    def flat(name, shape, *more):
        right(name, shape, *more)
        if name == "activation_backward":
            more[-1].copy_(more[0])

    is_refused(native.LIBRARY, flat, monkeypatch, caplog)
