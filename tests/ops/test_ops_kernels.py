"""The Triton kernels against their definitions in float64: on a GPU where there is one, else through Triton's interpreter."""

import numpy as np
import pytest
import torch

from intarsia.ops import ACTIVATIONS, reference
from intarsia.ops.segments import _reference
from ops.on_device import DEVICE, both, poison  # noqa: F401 - a fixture for all tests here

pytest.importorskip("triton")

from intarsia.ops.kernels.adamw import update
from intarsia.ops.kernels.adapted_norm import AdaptedNorm
from intarsia.ops.kernels.bottleneck import bottleneck
from intarsia.ops.kernels.bottleneck import launch as launch_bottleneck
from intarsia.ops.kernels.narrow import ACTIVATIONS as KINDS
from intarsia.ops.kernels.norms import SummedNorm, norm_change
from intarsia.ops.kernels.norms import launch as launch_norm_change
from intarsia.ops.kernels.segments import short_segments


def numbers(*shape, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g).to(DEVICE, dtype).requires_grad_()


def check(made, inputs, expected, wide, tol):
    """Output and gradients, each by its relative error as a whole."""
    grad = torch.randn(made.shape, generator=torch.Generator().manual_seed(9)).to(made)
    ours = (made, *torch.autograd.grad(made, inputs, grad))
    theirs = (expected, *torch.autograd.grad(expected, wide, grad.double()))
    for index, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        assert own.isfinite().all(), f"tensor {index} has numbers that nobody wrote"
        error = (own.double() - other).norm() / other.norm().clamp(min=1e-3)
        assert error < tol, f"tensor {index} is off by {error:.1e}"


def doubles(inputs):
    return [x.detach().double().requires_grad_() for x in inputs]


@both
@pytest.mark.parametrize("lengths", [[5, 0, 70, 1, 64], [130, 3], [65, 128], [2]], ids=str)
@pytest.mark.parametrize(("heads", "groups", "width"), [(2, 1, 64), (4, 2, 40), (2, 2, 16)])
@pytest.mark.parametrize(("causal", "window", "prefix"), [(False, 0, 0), (True, 0, 7), (False, 0, 20), (True, 4, 0)])
def test_attention_within_short_segments(lengths, heads, groups, width, causal, window, prefix, dtype, tol):
    if (
        DEVICE == "cpu"
        and sum(lengths) > 100
        and (heads, causal, prefix) not in ((2, False, 0), (4, True, 7), (2, True, 0))
    ):
        pytest.skip("the interpreter is slow; the other sizes cover this")
    starts = [np.concatenate([[0], np.cumsum([n + more if n else 0 for n in lengths])]) for more in (0, prefix)]
    starts_q, starts_k = (torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in starts)
    fused = numbers(sum(lengths), 3, heads, width, dtype=dtype)  # queries as a fused projection leaves them, not dense
    key, value = (numbers(int(starts_k[-1]), heads // groups, width, dtype=dtype, seed=s) for s in (1, 2))
    rest = starts_q, starts_k, causal, width**-0.5, window
    made, _ = short_segments(fused[:, 1], key, value, *rest)
    wide = doubles([fused, key, value])
    expected = _reference(wide[0][:, 1], *wide[1:], *rest)
    check(made, [fused, key, value], expected, wide, tol)


@both
@pytest.mark.parametrize(("tasks", "rows", "width"), [(1, 5, 64), (3, 11, 37), (2, 13, 96)])
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_change_of_a_norm(tasks, rows, width, centre, bias, dtype, tol):
    x, y = (numbers(tasks, rows, width, dtype=dtype, seed=s) for s in (0, 1))
    flat = numbers(tasks, 3 * width, dtype=dtype, seed=2)  # each task's numbers lie apart, as in a pack
    inputs = [x, y, flat]
    parts = [flat[:, :width], flat[:, width : 2 * width] if bias else None]
    wide = doubles(inputs)
    wide_parts = [wide[2][:, :width], wide[2][:, width : 2 * width] if bias else None]
    expected = reference.norm_change(*wide[:2], *wide_parts, 1e-5, centre=centre)
    check(norm_change(x, y, *parts, 1e-5, centre), inputs, expected, wide, tol)


@both
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_a_whole_norm_is_computed_at_once(tasks, bias, dtype, tol):
    inputs = [numbers(*shape, dtype=dtype, seed=s) for s, shape in enumerate([(tasks, 11, 37), (tasks, 74)])]
    own = [numbers(37, dtype=dtype, seed=s).detach() for s in (2, 3)]
    if not bias:
        own[1] = None

    def parts(flat):
        return flat[:, :37], flat[:, 37:] if bias else None

    def in_two(x, flat, gain, bias):
        y = torch.nn.functional.layer_norm(x, (37,), gain, bias, 1e-5)
        return reference.norm_change(x, y, *parts(flat), 1e-5, centre=True)

    wide, wide_own = doubles(inputs), [None if one is None else one.double() for one in own]
    made = norm_change(inputs[0], None, *parts(inputs[1]), 1e-5, True, *own)
    check(made, inputs, in_two(*wide, *wide_own), wide, tol)
    again, wide = doubles(inputs), doubles(inputs)
    made = reference.whole_norm(again[0], reference.Own(*wide_own, 1e-5, True), *parts(again[1]))
    check(made, again, in_two(*wide, *wide_own), wide, 1e-12)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("size", [3, 2048, 4099])
def test_adamw_steps_as_torchs(low, size):
    span = slice(8, 8 + size)
    flats = [torch.full((3, size + 16), float("nan"), device=DEVICE) for _ in range(3)]
    value, first, second = (flat[:, span] for flat in flats)
    g = torch.Generator().manual_seed(0)
    value.copy_(torch.randn(3, size, generator=g))
    first.zero_(), second.zero_()
    copy = torch.zeros(3, size, device=DEVICE, dtype=torch.bfloat16) if low else None
    settings = [(1e-2, 0.1, 0.9, 0.99, 1e-8), (3e-3, 0.0, 0.8, 0.999, 1e-6), (1.0, 0.01, 0.9, 0.95, 1e-8)]
    theirs = [torch.nn.Parameter(row.double()) for row in value]
    optimizers = [
        torch.optim.AdamW([one], lr=rate, betas=(b1, b2), eps=eps, weight_decay=decay)
        for one, (rate, decay, b1, b2, eps) in zip(theirs, settings, strict=True)
    ]
    factor = torch.tensor([1.0, 0.5, 2.0], device=DEVICE)
    columns = [torch.tensor([s[i] for s in settings], device=DEVICE) for i in range(5)]
    for step in range(1, 4):
        gradient = torch.randn(3, size, generator=g).to(DEVICE, torch.bfloat16 if low else torch.float32)
        correct = [1 - beta**step for beta in columns[2:4]]
        update(value, copy, first, second, gradient, torch.stack([*columns, *correct, factor]))
        for own, optimizer, one, by in zip(theirs, optimizers, gradient, factor, strict=True):
            own.grad = one.double() * by.double()
            optimizer.step()
    for own, row in zip(theirs, value, strict=True):
        torch.testing.assert_close(row.double(), own.detach(), rtol=1e-4, atol=1e-5)
    assert all(flat[:, :8].isnan().all() and flat[:, 8 + size :].isnan().all() for flat in flats)
    if copy is not None:
        # To one place: Triton's interpreter cuts off where a GPU rounds.
        torch.testing.assert_close(copy.float(), value, rtol=2**-7, atol=0)


@both
@pytest.mark.parametrize("activation", [name for name in KINDS if name not in ("swish", "gelu_pytorch_tanh")])
@pytest.mark.parametrize(
    ("tasks", "rows", "width", "narrow"), [(1, 5, 64, 3), (3, 20, 37, 5), (2, 37, 96, 48), (2, 33, 64, 16)]
)
def test_the_bottleneck_with_its_residual(tasks, rows, width, narrow, activation, dtype, tol):
    y = numbers(tasks, rows, width, dtype=dtype)
    shapes = [(narrow, width), (narrow,), (width, narrow), (width,)]
    flat = numbers(tasks, sum(int(np.prod(shape)) + 8 for shape in shapes), dtype=dtype, seed=1)
    # A power of two is exact in half precision, so the reference's numbers are on the same side of relu's bend.
    scale = 2.0 ** round(-np.log2(width) / 4)

    def parts(flat):
        found, at = [], 0
        for shape in shapes:
            size = int(np.prod(shape))
            found.append(flat[:, at : at + size].view(tasks, *shape) * scale)
            at += size + 8
        return found

    made, _ = bottleneck(y, *parts(flat), KINDS[activation])
    wide = doubles([y, flat])
    expected = wide[0] + reference.bottleneck(wide[0], *parts(wide[1]), ACTIVATIONS[activation])
    check(made, [y, flat], expected, wide, tol)


def close(made, expected, tol):
    assert made.isfinite().all(), "there are numbers that nobody wrote"
    assert (made.double() - expected).norm() / expected.norm() < tol


@both
@pytest.mark.parametrize(("tasks", "rows", "width", "narrow"), [(1, 5, 64, 3), (3, 20, 37, 5), (2, 37, 200, 48)])
def test_the_bottleneck_is_written_over_its_input(tasks, rows, width, narrow, dtype, tol):
    y = numbers(tasks, rows, width, dtype=dtype).detach()
    down, up = (
        numbers(tasks, *shape, dtype=dtype, seed=1).detach() * width**-0.25
        for shape in ((narrow, width), (width, narrow))
    )
    down_bias, up_bias = numbers(tasks, narrow, dtype=dtype).detach(), numbers(tasks, width, dtype=dtype).detach()
    wide = [one.double() for one in (y, down, down_bias, up, up_bias)]
    expected = wide[0] + reference.bottleneck(*wide, ACTIVATIONS["gelu_new"])
    launch_bottleneck(y, down, down_bias, up, up_bias, KINDS["gelu_new"], out=y)
    close(y, expected, tol)


@both
@pytest.mark.parametrize(("tasks", "rows", "width"), [(1, 5, 64), (3, 11, 37)])
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_change_of_a_norm_is_written_over_its_output(tasks, rows, width, centre, bias, dtype, tol):
    x, y = (numbers(tasks, rows, width, dtype=dtype, seed=s).detach() for s in (0, 1))
    gain, shift = (numbers(tasks, width, dtype=dtype, seed=s).detach() for s in (2, 3))
    parts = [gain, shift if bias else None]
    wide = [None if one is None else one.double() for one in (x, y, *parts)]
    expected = reference.norm_change(*wide, 1e-5, centre=centre)
    over = wide[1].clone()
    assert reference.norm_change_(wide[0], over, *wide[2:], 1e-5, centre=centre) is over
    close(over, expected, 1e-12)
    launch_norm_change(x, y, *parts, 1e-5, centre, out=y)
    close(y, expected, tol)


def test_every_activation_that_the_kernel_knows_is_one_of_the_library():
    assert set(KINDS) <= set(ACTIVATIONS)


@both
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("readers", [(0,), (1,), (0, 1)])
def test_a_norm_adds_its_residual_and_the_gradients_of_its_readers(trained, bias, residual, readers, dtype, tol):
    tasks = 3 if trained else 1
    inputs = [numbers(3, 11, 37, dtype=dtype, seed=s) for s in range(1 + residual)]
    inputs += [numbers(tasks, 37, dtype=dtype, seed=s) for s in range(2, 2 + trained * (1 + bias))]
    own = [numbers(37, dtype=dtype, seed=s).detach() for s in (5, 6)[: 1 + bias]]

    def parts(given):
        change = given[1 + residual :]
        return given[0], given[1] if residual else None, *change, *[None] * (2 - len(change))

    def alone(given):
        x, r, gain, shift = parts(given)
        x = x if r is None else x + r
        change = 0 if gain is None else reference.norm_change(x, torch.zeros_like(x), gain, shift, 1e-5, centre=True)
        return change + torch.nn.functional.layer_norm(x, (37,), *[one.double() for one in own], eps=1e-5)

    x, r, gain, shift = parts(inputs)
    made = SummedNorm.apply(x, r, own[0], own[1] if bias else None, gain, shift, 1e-5, True)
    assert made[0].data_ptr() == made[1].data_ptr()
    wide = doubles(inputs)
    expected = alone(wide)
    assert (made[0].double() - expected).norm() / expected.norm() < tol
    weights = [numbers(3, 11, 37, dtype=dtype, seed=s).detach() for s in (7, 8)]
    ours = torch.autograd.grad(sum((made[i] * weights[i]).sum() for i in readers), inputs)
    theirs = torch.autograd.grad(sum((expected * weights[i].double()).sum() for i in readers), wide)
    for own_grad, other in zip(ours, theirs, strict=True):
        assert own_grad.isfinite().all()
        assert (own_grad.double() - other).norm() / other.norm() < tol


@both
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "width", "narrow"), [(5, 37, 3), (20, 200, 5), (37, 64, 48)])
@pytest.mark.parametrize("readers", [(0,), (1,), (0, 1)])
def test_a_norm_computes_the_adapter_before_it_along(trained, bias, rows, width, narrow, readers, dtype, tol):
    if DEVICE == "cpu" and rows > 5 and readers != (0, 1):
        pytest.skip("the interpreter is slow; the other sizes cover this")
    shapes = [(rows, width), (rows, width), (narrow, width), (narrow,), (width, narrow), (width,)]
    shapes += [(width,)] * (trained * (1 + bias))
    inputs = [numbers(3, *shape, dtype=dtype, seed=s) for s, shape in enumerate(shapes)]
    if (
        dtype == torch.float32
    ):  # far from 0, where sums of squares would cancel; half precision has too few digits there
        inputs[0] = (inputs[0].detach() + 30).requires_grad_()
    for place in (2, 4):
        inputs[place] = (inputs[place].detach() * width**-0.25).requires_grad_()
    own = [numbers(width, dtype=dtype, seed=s).detach() for s in (11, 12)[: 1 + bias]]

    def parts(given):
        change = given[6:]
        return *given[:6], *change, *[None] * (2 - len(change))

    def alone(given, own):
        y, r, *adapter, gain, shift = parts(given)
        x = y + reference.bottleneck(y, *adapter, ACTIVATIONS["gelu_new"]) + r
        change = 0 if gain is None else reference.norm_change(x, torch.zeros_like(x), gain, shift, 1e-5, centre=True)
        return change + torch.nn.functional.layer_norm(x, (width,), *own, eps=1e-5)

    y, r, *adapter, gain, shift = parts(inputs)
    made = AdaptedNorm.apply(y, r, *adapter, KINDS["gelu_new"], own[0], own[1] if bias else None, gain, shift, 1e-5)
    assert made[0].data_ptr() == made[1].data_ptr()
    wide = doubles(inputs)
    expected = alone(wide, [one.double() for one in own])
    weights = [numbers(3, rows, width, dtype=dtype, seed=s).detach() for s in (7, 8)]
    assert (made[0].double() - expected).norm() / expected.norm() < tol
    ours = torch.autograd.grad(sum((made[i] * weights[i]).sum() for i in readers), inputs)
    theirs = torch.autograd.grad(sum((expected * weights[i].double()).sum() for i in readers), wide)
    for index, (own_grad, other) in enumerate(zip(ours, theirs, strict=True)):
        assert own_grad.isfinite().all()
        assert (own_grad.double() - other).norm() / other.norm() < tol, index
