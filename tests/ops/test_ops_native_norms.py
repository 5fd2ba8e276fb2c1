"""The kernel of norms behind residual sums for bf16 on a CPU: exact within its rounding whatever sizes and parts are."""

import pytest
import torch
from torch.nn import functional as F

from intarsia import ops
from intarsia.ops import Own, Summed
from intarsia.ops.native import compiled
from intarsia.ops.native import norms as native
from ops.wrong_code import is_refused

there = pytest.mark.skipif(not native.LIBRARY.there(), reason="needs a C compiler and torch with GNU OpenMP")
SIZES = {"MRPC's": (16, 53, 384), "one row": (1, 1, 32), "more threads than rows": (1, 2, 64), "wide": (3, 5, 1024)}
PARTS = {"frozen": (), "gain": ("gain",), "gain and bias": ("gain", "bias"), "alone": ("gain", "bias", "no residual")}


def draw(size, parts):
    """x, residual, own, gain, bias, two readers' gradients."""
    g = torch.Generator().manual_seed(0)
    x, residual, grad, again = (torch.randn(size, generator=g).bfloat16() for _ in range(4))
    weights = torch.randn(4, 1, size[-1], generator=g)
    own = Own(weights[0, 0].bfloat16(), weights[1, 0].bfloat16() if parts != ("gain",) else None, 1e-5, True)
    gain, bias = (weights[i].requires_grad_() if name in parts else None for i, name in ((2, "gain"), (3, "bias")))
    residual = None if "no residual" in parts else residual.requires_grad_()
    return x.requires_grad_(), residual, own, gain, bias, grad, again


def exact(x, residual, own, gain, bias):
    """In float64 but for what is rounded as it is kept: the result, and what has gradients."""
    leaves = [t.detach().double().requires_grad_() for t in (x, residual, gain, bias) if t is not None]
    rest = list(leaves)
    total = rest.pop(0) + (0 if residual is None else rest.pop(0))
    rounded = total + ((x if residual is None else x + residual).detach() - total.detach())
    own_gain, own_bias = own.gain.double(), 0 if own.bias is None else own.bias.double()
    if gain is not None:
        own_gain = own_gain + rest.pop(0) + (gain.bfloat16() - gain).detach()
    if bias is not None:
        own_bias = own_bias + rest.pop(0) + (bias.bfloat16() - bias).detach()
    whole = (
        F.layer_norm(rounded, rounded.shape[-1:], eps=own.eps)
        if own.centre
        else F.rms_norm(rounded, rounded.shape[-1:], eps=own.eps)
    )
    return whole * own_gain + own_bias, leaves


def near(found, wanted):
    """Within a rounding or two of bf16 of the largest."""
    torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=1e-2 * float(wanted.detach().abs().max()))


@there
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("centre", [True, False], ids=["layer norm", "rms norm"])
def test_values_and_gradients_of_both_readers_are_exact_within_their_rounding(centre, parts, size):
    x, residual, own, gain, bias, grad, again = draw(size, parts)
    own = own._replace(centre=centre)
    leaves = [t for t in (x, residual, gain, bias) if t is not None]
    one, other = native.summed_norm(x, residual, own, gain, bias)
    assert torch.equal(one, other)
    wanted, wide = exact(x, residual, own, gain, bias)
    near(one, wanted)
    readers = {"both": ((one, other), (grad, again)), "first": ((one,), (grad,)), "second": ((other,), (again,))}
    for outs, grads in readers.values():
        found = torch.autograd.grad(outs, leaves, grads, retain_graph=True)
        slopes = torch.autograd.grad(wanted, wide, sum(g.double() for g in grads), retain_graph=True)
        for t, first, second in zip(leaves, found, slopes, strict=True):
            assert first.dtype == t.dtype
            near(first, second)


@there
def test_what_is_given_back_is_written_whole_and_the_same_each_time():
    """torch fills new tensors with NaN here."""
    torch.use_deterministic_algorithms(True)
    try:
        for size in SIZES.values():
            x, residual, own, gain, bias, grad, again = draw(size, PARTS["gain and bias"])
            runs = []
            for _ in range(2):
                outs = native.summed_norm(x, residual, own, gain, bias)
                runs.append((*outs, *torch.autograd.grad(outs, (x, residual, gain, bias), (grad, again))))
            assert all(bool(one.isfinite().all()) and torch.equal(one, other) for one, other in zip(*runs, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@there
def test_gradients_of_weights_are_the_same_each_time_whatever_thread_is_slow():
    x, residual, own, gain, bias, grad, again = draw((4000, 64), PARTS["gain and bias"])
    outs, before = native.summed_norm(x, residual, own, gain, bias), torch.get_num_threads()
    wanted, wide = exact(x, residual, own, gain, bias)
    slopes = torch.autograd.grad(wanted, wide[-2:], grad.double() + again)
    try:
        torch.set_num_threads(5)  # more than many a machine has, so that some come late
        runs = [torch.autograd.grad(outs, (gain, bias), (grad, again), retain_graph=True) for _ in range(100)]
    finally:
        torch.set_num_threads(before)
    for one, other in zip(runs[0], slopes, strict=True):
        near(one, other)
    assert all(torch.equal(one, other) for run in runs for one, other in zip(run, runs[0], strict=True))


@there
def test_what_is_no_number_is_not_hidden():
    x, residual, own, *_ = draw(SIZES["MRPC's"], ())
    x = x.detach().clone()
    x[3, 7, 5] = torch.nan
    out, _ = native.summed_norm(x, residual, own, None, None)
    assert bool(out[3, 7].isnan().all())
    assert int(out.isnan().any(-1).sum()) == 1


@pytest.fixture
def as_with_amx(monkeypatch):
    monkeypatch.setattr(compiled, "amx", lambda: True)


@there
@pytest.mark.usefixtures("as_with_amx")
def test_a_sum_that_is_left_to_a_norm_is_read_by_it_and_its_result_twice():
    x, residual, own, gain, bias, grad, again = draw(SIZES["MRPC's"], PARTS["gain and bias"])
    assert ops.leaves_sums(residual)
    for weights in ((gain, bias), ()):
        y = ops.whole_norm(Summed(x, residual), own, *weights) if weights else ops.frozen_norm(Summed(x, residual), own)
        second = ops.again(y)
        assert second is not y
        wanted, wide = exact(x, residual, own, *(weights or (None, None)))
        near(y, wanted)
        leaves = [x, residual, *weights]
        found = torch.autograd.grad((y, second), leaves, (grad, again))
        for first, other in zip(found, torch.autograd.grad(wanted, wide, grad.double() + again), strict=True):
            near(first, other)


@there
@pytest.mark.usefixtures("as_with_amx")
def test_what_it_does_not_know_is_left_to_torch():
    x, _, own, gain, *_ = draw(SIZES["MRPC's"], PARTS["gain"])
    assert native.takes(x, own, gain)
    assert not native.takes(x.float(), own, gain)
    assert not native.takes(x[..., :40], own, gain)
    assert not native.takes(x[:0], own, gain)
    assert not native.takes(x, own, gain.repeat(2, 1))
    assert not native.takes(x, own, gain.double())
    assert not native.takes(x, own._replace(gain=own.gain.float()))
    assert not native.takes(x, own._replace(gain=own.gain.clone().requires_grad_()))
    with torch.no_grad():
        assert not native.takes(x, own, gain)
        assert not ops.leaves_sums(x)


@there
def test_where_new_tensors_go_is_nothing_to_it():
    x, residual, own, gain, bias, grad, again = draw(SIZES["MRPC's"], PARTS["gain and bias"])
    leaves, runs = (x, residual, gain, bias), []
    for device in ("cpu", "meta"):
        with torch.device(device):
            outs = native.summed_norm(x, residual, own, gain, bias)
            runs.append((*outs, *torch.autograd.grad(outs, leaves, (grad, again))))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@there
def test_a_gain_and_bias_of_another_dtype_are_read_as_what_they_are():
    x, residual, own, gain, bias, *_ = draw(SIZES["MRPC's"], PARTS["gain and bias"])
    out, _ = native.summed_norm(x, residual, own, gain, bias)
    same, _ = native.summed_norm(x, residual, own, gain.bfloat16(), bias.bfloat16())
    assert torch.equal(out, same)


@there
def test_machine_code_that_computes_something_else_is_not_used(monkeypatch, caplog):
    """The second reader is forgotten; a bias is added twice."""
    right = native.LIBRARY.run

    def deaf(name, shape, grad, again, *more):
        right(name, shape, grad, None if name == "norm_backward" else again, *more)

    def twice(name, *more):
        right(name, *more)
        if name == "norm_forward":
            more[7].add_(more[6].bfloat16())

    for wrong in (deaf, twice):
        is_refused(native.LIBRARY, wrong, monkeypatch, caplog)
