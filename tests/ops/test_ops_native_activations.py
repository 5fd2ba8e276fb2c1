"""The kernel of feed-forwards' activations for bf16 on a CPU: every number that bf16 has, and its slope."""

import ctypes

import pytest
import torch

from intarsia.ops import ACTIVATIONS, activated
from intarsia.ops.native import activations as native
from intarsia.ops.native import bottleneck, compiled
from ops.c_code import loaded
from ops.wrong_code import is_refused

there = pytest.mark.skipif(not native.LIBRARY.there(), reason="needs a C compiler and torch with GNU OpenMP")


SOURCE = """
#include "matrices.h"
#include "activations.h"

/* count: a multiple of LANES. */
void powers(long count, int rough, const float *x, float *out) {
    for (long i = 0; i < count; i += LANES) {
        vec in, found;
        memcpy(&in, x + i, sizeof in);
        found = power(in, rough);
        memcpy(out + i, &found, sizeof found);
    }
}

void activations(long count, int kind, const float *x, float *out, float *slopes) {
    for (long i = 0; i < count; i += LANES) {
        vec in, slope, found;
        memcpy(&in, x + i, sizeof in);
        found = activated(kind, in, &slope);
        memcpy(out + i, &found, sizeof found), memcpy(slopes + i, &slope, sizeof slope);
    }
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return loaded(SOURCE, tmp_path_factory.mktemp("activations"))


@there
@pytest.mark.parametrize(("rough", "bound"), [(0, 5e-7), (1, 4e-6)], ids=["exact", "rough"])
def test_powers_of_two_are_as_near_as_they_say(rough, bound, library):
    x, out = torch.linspace(-125, 0, 2**16), torch.empty(2**16)
    library.powers(ctypes.c_long(len(x)), rough, ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(out.data_ptr()))
    torch.testing.assert_close(out.double(), x.double().exp2(), rtol=bound, atol=0)


@there
@pytest.mark.parametrize(("name", "kind"), bottleneck.ACTIVATIONS.items())
def test_activations_are_as_near_as_they_say_before_they_are_rounded(name, kind, library):
    x = torch.linspace(-9, 9, 2**16)
    found = torch.empty(2, len(x))
    places = [ctypes.c_void_p(one.data_ptr()) for one in (x, *found)]
    library.activations(ctypes.c_long(len(x)), kind, *places)
    wide = x.double().requires_grad_()
    wanted = ACTIVATIONS[name](wide)
    torch.testing.assert_close(found[0].double(), wanted, rtol=2e-6, atol=3e-6)
    slopes = torch.autograd.grad(wanted.sum(), wide)[0] if wanted.requires_grad else torch.ones_like(wide)
    torch.testing.assert_close(found[1].double(), slopes, rtol=2e-6, atol=3e-6)


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
    assert torch.equal(native.activation(x[:, 1:4], "gelu"), native.activation(x, "gelu")[:, 1:4])


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
