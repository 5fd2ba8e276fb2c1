"""The kernel of adapters and LoRA for bf16 on a CPU: exact within its rounding whatever sizes and parts are."""

import pytest
import torch

from intarsia.ops import ACTIVATIONS
from intarsia.ops.native import bottleneck as native
from ops.bottlenecks import SIZES, draw, near, there
from ops.wrong_code import is_refused


def exact(y, x, down, down_bias, up, up_bias, grad, kind, scale):
    """In float64 but for the weights, which are rounded to bf16: the result, and the gradients that belong to `grad`."""
    own = {id(t): t.detach().double().requires_grad_() for t in (y, x, down, down_bias, up, up_bias) if t is not None}
    a, b = (own[id(t)][0] + (t.detach().bfloat16() - t.detach())[0] for t in (down, up))
    inner = own[id(x)] @ a.mT + (0 if down_bias is None else own[id(down_bias)])
    change = ACTIVATIONS[kind](inner) @ b.mT + (0 if up_bias is None else own[id(up_bias)])
    out = own[id(y)] + scale * change
    return out, torch.autograd.grad(out, list(own.values()), grad.double())


def compare(inputs, kind, scale):
    *given, grad = inputs
    unique = list({id(t): t for t in given if t is not None}.values())
    out = native.bottleneck(*given, kind, scale)
    wanted, slopes = exact(*inputs, kind, scale)
    near(out, wanted)
    found = torch.autograd.grad(out, unique, grad)
    for t, own, other in zip(unique, found, slopes, strict=True):
        assert own.dtype == t.dtype
        near(own, other)
    return out, found


@there
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_values_and_gradients_are_exact_within_their_rounding(size):
    compare(draw(size), "gelu_new", 0.5)
    compare(draw(size, biases=False), "linear", 2.0)


@there
@pytest.mark.parametrize("kind", native.ACTIVATIONS)
def test_every_activation_has_its_slope(kind):
    compare(draw(SIZES["a block and one"], serial=True), kind, 1.0)


@there
def test_activations_far_out_are_what_torch_says():
    """Through a width of one, so that nothing hides a wrong tail."""
    x = torch.zeros(64, 32)
    x[:, 0] = torch.tensor([s * v for v in (0, 1e-3, 0.1, 0.7, 2, 3, 5, 9, 30, 1e3, 1e4) for s in (1, -1)] * 3)[:64]
    down, up = torch.zeros(1, 1, 32), torch.zeros(1, 32, 1)
    down[0, 0, 0] = up[0, 0, 0] = 1.0
    for kind in native.ACTIVATIONS:
        inputs = (
            torch.zeros(64, 32).bfloat16(),
            x.bfloat16().requires_grad_(),
            down.clone().requires_grad_(),
            None,
            up,
            None,
        )
        out = native.bottleneck(*inputs, kind)
        (slope,) = torch.autograd.grad(out[:, 0].sum(), inputs[1])
        z = x.bfloat16()[:, 0].double().requires_grad_()
        wanted = ACTIVATIONS[kind](z)
        (slopes,) = torch.autograd.grad(wanted.sum(), z)
        torch.testing.assert_close(out[:, 0].double(), wanted, rtol=1e-2, atol=1e-4)
        torch.testing.assert_close(slope[:, 0].double(), slopes, rtol=1e-2, atol=1e-4)


@there
def test_rows_may_lie_anyhow_and_nobody_else_is_changed():
    y, x, *weights, grad = draw(SIZES["a block and one"])
    apart = x.detach().clone().T.contiguous().T.requires_grad_()
    assert not apart.is_contiguous()
    before = y.detach().clone()
    out = native.bottleneck(y, apart, *weights, "tanh")
    same = native.bottleneck(y, x, *weights, "tanh")
    assert torch.equal(out, same)
    assert torch.equal(y, before)
    one, other = torch.autograd.grad(out, apart, grad), torch.autograd.grad(same, x, grad)
    assert torch.equal(one[0], other[0])


@there
def test_columns_of_something_wider_are_read_and_handed_on_where_they_lie():
    """As queries are of the product that has keys and values, too, and their gradients."""
    y, x, *weights, grad = draw((2 * 41, 64, 96, 8), biases=False)
    wide = torch.randn(2, 41, 3 * 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    wide[..., 96:192] = y.detach().view(2, 41, 96)
    wide_grad = torch.zeros(2, 41, 2 * 96).bfloat16()
    wide_grad[..., 96:] = grad.view(2, 41, 96)
    columns, x = wide[..., 96:192].requires_grad_(), x.detach().view(2, 41, 64).requires_grad_()
    out, same = (
        native.bottleneck(columns, x, *weights, "linear"),
        native.bottleneck(y, x.view(82, 64), *weights, "linear"),
    )
    assert torch.equal(out.view(82, 96), same)
    found = torch.autograd.grad(out, (columns, x, weights[0], weights[2]), wide_grad[..., 96:])
    wanted = torch.autograd.grad(same, (y, x, weights[0], weights[2]), grad)
    assert found[0].data_ptr() == wide_grad[..., 96:].data_ptr()  # no copy
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.reshape(other.shape), other)


@there
@pytest.mark.parametrize(
    ("rows", "apart"),
    [
        (torch.zeros(6, 4), 4),
        (torch.zeros(2, 3, 8)[..., :4], 8),
        (torch.zeros(1, 5, 8)[..., 2:4], 8),
        (torch.zeros(5, 2, 4)[:, :1], 8),
        (torch.zeros(1, 4), 4),
        (torch.zeros(3, 4, 4)[:, :2], None),  # not evenly
        (torch.zeros(4, 6).mT, None),
        (torch.zeros(1).expand(3, 4), None),
    ],
)
def test_rows_are_copied_only_where_they_lie_unevenly(rows, apart):
    found, stride = native._apart(rows)
    assert stride == (rows.shape[-1] if apart is None else apart)
    assert (found.data_ptr() == rows.data_ptr()) == (apart is not None)


@there
def test_what_is_given_back_is_written_whole_and_the_same_each_time():
    """torch fills new tensors with NaN here."""
    torch.use_deterministic_algorithms(True)
    try:
        for size in SIZES.values():
            first, again = (compare(draw(size, serial=size[1] == size[2]), "silu", 1.0) for _ in range(2))
            for one, other in zip((first[0], *first[1]), (again[0], *again[1]), strict=True):
                assert bool(one.isfinite().all())
                assert torch.equal(one, other)
    finally:
        torch.use_deterministic_algorithms(False)


@there
def test_what_is_no_number_is_not_hidden():
    y, x, *weights, _ = draw(SIZES["a block and one"])
    x = x.detach().clone()
    x[7, 3] = torch.nan
    for kind in native.ACTIVATIONS:
        out = native.bottleneck(y, x, *weights, kind)
        assert bool(out[7].isnan().all()), kind
        assert int(out.isnan().any(-1).sum()) == 1, kind


@there
def test_more_threads_change_nothing_but_the_order_of_sums():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            found.append(compare(draw(SIZES["MRPC's, rank 8"]), "linear", 2.0))
    finally:
        torch.set_num_threads(before)
    for out, grads in found[1:]:
        assert torch.equal(out, found[0][0])
        assert torch.equal(grads[1], found[0][1][1])  # of x
        for one, other in zip(grads, found[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@there
def test_all_is_the_same_each_time_whatever_thread_is_slow():
    *given, grad = draw((2000, 64, 96, 24))
    wanted, _ = exact(*given, grad, "gelu", 0.5)
    before, runs = torch.get_num_threads(), []
    try:
        torch.set_num_threads(5)  # more than many a machine has, so that some come late
        for _ in range(100):
            out = native.bottleneck(*given, "gelu", 0.5)
            runs.append((out, *torch.autograd.grad(out, given, grad)))
    finally:
        torch.set_num_threads(before)
    near(runs[0][0], wanted)
    assert all(torch.equal(one, other) for run in runs for one, other in zip(run, runs[0], strict=True))


@there
def test_small_numbers_have_their_tanh():
    x = torch.zeros(32, 32)
    x[:, 0] = 10.0 ** -torch.arange(32.0) * torch.tensor([1.0, -1.0]).repeat(16)
    down = torch.eye(32)[None, :1].requires_grad_()
    out = native.bottleneck(
        torch.zeros(32, 32).bfloat16(), x.bfloat16(), down, None, torch.eye(32)[None, :, :1], None, "tanh"
    )
    torch.testing.assert_close(out[:, 0].float(), x[:, 0].bfloat16().float().tanh(), rtol=8e-3, atol=0.0)


@there
def test_biases_of_another_dtype_are_read_as_what_they_are():
    y, x, down, down_bias, up, up_bias, grad = draw(SIZES["under half a block"])
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        biases = [one.detach().bfloat16().to(dtype).requires_grad_() for one in (down_bias, up_bias)]
        out = native.bottleneck(y, x, down, biases[0], up, biases[1], "gelu")
        slopes = torch.autograd.grad(out, biases, grad)
        assert [slope.dtype for slope in slopes] == [dtype, dtype]
        found.append((out, *(slope.float() for slope in slopes)))
    for one, other in zip(*found, strict=True):
        near(one, other.double())


@there
def test_machine_code_that_computes_something_else_is_not_used(monkeypatch, caplog):
    """Of a compiler, a processor or a system with a fault: weights in each other's place, and a gradient too few."""
    right = native.LIBRARY.run

    def transposed(name, shape, y, x, down, *more):
        right(name, shape, y, x, down.flip(1), *more)

    def forgetful(name, *more):
        right(name, *more[:-1], None if name == "bottleneck_backward" else more[-1])

    for wrong in (transposed, forgetful):
        is_refused(native.LIBRARY, wrong, monkeypatch, caplog)
