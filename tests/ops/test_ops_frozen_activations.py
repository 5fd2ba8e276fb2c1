"""A product with frozen matrices and an activation before or behind it: each is computed along with the other."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from intarsia import ops
from intarsia.ops.native import activations
from intarsia.ops.native import products as native
from ops.products import draw, near, there


@there
@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_a_product_with_an_activation_takes_its_slopes_along(name):
    inner, weight, bias, grad = draw((2, 53), 64, 96)
    panels, calls, right = ops.Panels([weight]), [], activations.LIBRARY.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations.LIBRARY, "run", lambda what, *more: calls.append(what) or right(what, *more))
        (found,) = ops.frozen_linear(activations.activation(inner, name), panels, bias, [96])
        (own,) = torch.autograd.grad(found, inner, grad)
    assert calls == ["activation_forward"]
    wide = inner.detach().double().requires_grad_()
    wanted = F.linear(ops.ACTIVATIONS[name](wide), weight.double(), bias.double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(own.double(), torch.autograd.grad(wanted, wide, grad.double())[0], rtol=1e-2, atol=1e-2)


@there
@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_its_slopes_are_the_activations_own(name):
    """Met by the product with a matrix of ones and zeros, where nothing else can differ."""
    inner = torch.linspace(-6, 6, 75 * 64).view(75, 64).bfloat16().requires_grad_()
    grad = torch.randn(75, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = ops.Panels([torch.eye(64).bfloat16()]).backward(grad, inner.detach(), name)
    assert torch.equal(found, torch.autograd.grad(activations.activation(inner, name), inner, grad)[0])


@there
@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_an_activation_that_comes_each_time_is_computed_with_the_product(name, monkeypatch):
    x, weight, bias, grad = draw((2, 53), 64, 96)
    panels, calls, right = ops.Panels([weight]), [], activations.LIBRARY.run
    monkeypatch.setattr(activations.LIBRARY, "run", lambda what, *more: calls.append(what) or right(what, *more))

    def step(*, changed=False):
        calls.clear()
        (inner,) = ops.frozen_linear(x, panels, bias, [96])
        if changed:
            inner.mul_(2)
        out = activations.activation(inner, name)
        return out, torch.autograd.grad(out, x, grad)[0], list(calls)

    out, slope, made = step()
    assert made == ["activation_forward", "activation_backward"]
    again, same, made = step()
    assert made == ["activation_backward"]
    assert torch.equal(out, again)
    assert torch.equal(slope, same)
    # Changed between, it is another's; and then it is known again.
    other, _, made = step(changed=True)
    assert made == ["activation_forward", "activation_backward"]
    near(other, ops.ACTIVATIONS[name](2 * ops.frozen_linear(x, panels, bias, [96])[0].double()))
    assert step()[2] == ["activation_forward", "activation_backward"]
    assert step()[2] == ["activation_backward"]


@there
def test_an_activation_behind_a_product_that_somebody_looked_into_is_that_products():
    x, weight, bias, _ = draw((7,), 64, 96)
    panels = ops.Panels([weight])
    activations.activation(ops.frozen_linear(x, panels, bias, [96])[0], "gelu")
    with FlopCounterMode(display=False):
        (inner,) = ops.frozen_linear(x, panels, bias, [96])
    near(activations.activation(inner, "gelu"), F.gelu(inner.double()))


@there
def test_another_activation_than_the_last_time_is_the_one_that_is_asked_for():
    x, weight, bias, _ = draw((7,), 64, 96)
    panels = ops.Panels([weight])
    for name in ("gelu", "silu", "silu", "gelu_new"):
        (inner,) = ops.frozen_linear(x, panels, bias, [96])
        near(activations.activation(inner, name), ops.ACTIVATIONS[name](inner.double()))


@there
def test_who_reads_a_product_twice_has_two_tensors():
    x, weight, bias, _ = draw((7,), 64, 96)
    panels = ops.Panels([weight])
    activations.activation(ops.frozen_linear(x, panels, bias, [96])[0], "gelu")
    (inner,) = ops.frozen_linear(x, panels, bias, [96])
    first, second = (activations.activation(inner, "gelu") for _ in range(2))
    wanted = second.detach().clone()
    first.mul_(2)
    assert torch.equal(second, wanted)


@there
def test_what_an_activation_reads_may_be_columns_of_something_wider():
    wide, weight, bias, grad = draw((53,), 96, 128)
    found = []
    for inner in (wide[:, 32:], wide[:, 32:].contiguous()):
        (out,) = ops.frozen_linear(activations.activation(inner, "gelu"), ops.Panels([weight[:, 32:]]), bias, [128])
        found.append((out, *torch.autograd.grad(out, wide, grad)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@there
def test_gradients_cannot_be_differentiated_which_is_said():
    x, weight, bias, _ = draw((7,), 64, 96)
    (inner,) = ops.frozen_linear(x, ops.Panels([weight]), bias, [96])
    (found,) = ops.frozen_linear(activations.activation(inner, "gelu"), ops.Panels([weight.mT]), None, [64])
    (slope,) = torch.autograd.grad(found.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@there
def test_what_nobody_reads_is_computed_once_at_most(monkeypatch):
    x, weight, bias, _ = draw((7,), 64, 96)
    panels, given, right = ops.Panels([weight]), [], native.LIBRARY.run
    monkeypatch.setattr(native.LIBRARY, "run", lambda what, *more: given.append(more[-1]) or right(what, *more))
    activations.activation(ops.frozen_linear(x, panels, bias, [96])[0], "gelu")
    given.clear()
    for _ in range(3):
        ops.frozen_linear(x, panels, bias, [96])
    assert [values is None for values in given] == [False, True, True]


@there
@pytest.mark.parametrize("change", ["in place", "another tensor", "read twice"])
def test_what_is_no_longer_an_activation_is_not_taken_for_one(change):
    inner, weight, bias, grad = draw((7,), 64, 96)
    wide = inner.detach().double().requires_grad_()
    y, z = activations.activation(inner, "gelu"), F.gelu(wide)
    if change == "in place":
        y.mul_(2)
        z = z * 2
    elif change == "another tensor":
        y, z = y * 2, z * 2
    more = y.sum() * 3 if change == "read twice" else 0
    same = z.sum() * 3 if change == "read twice" else 0
    (found,) = ops.frozen_linear(y, ops.Panels([weight]), bias, [96])
    wanted = F.linear(z, weight.double(), bias.double())
    (own,) = torch.autograd.grad((found * grad).sum() + more, inner)
    (other,) = torch.autograd.grad((wanted * grad.double()).sum() + same, wide)
    torch.testing.assert_close(own.double(), other, rtol=2e-2, atol=2e-2)


@there
def test_what_an_activation_had_read_must_not_have_been_changed():
    """As in torch: its slopes would be those of other numbers."""
    x, weight, bias, _ = draw((7,), 64, 96)
    inner = x * 1
    y = activations.activation(inner, "gelu")
    inner.mul_(3)
    (found,) = ops.frozen_linear(y, ops.Panels([weight]), bias, [96])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


@there
@pytest.mark.parametrize("wish", ["hook", "retain_grad"])
def test_who_waits_for_the_gradient_of_an_activation_gets_it(wish):
    inner, weight, bias, grad = draw((7,), 64, 96)
    y, seen = activations.activation(inner, "gelu"), []
    if wish == "hook":
        y.register_hook(seen.append)
    else:
        y.retain_grad()
    (found,) = ops.frozen_linear(y, ops.Panels([weight]), bias, [96])
    found.backward(grad)
    near(seen[0] if wish == "hook" else y.grad, grad.double() @ weight.double())
