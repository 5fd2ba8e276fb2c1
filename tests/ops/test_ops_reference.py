"""Each operation equals a plain loop over rows, whatever the traffic, the sizes and the number type."""

import math

import pytest
import torch
from torch.nn import functional as F

from intarsia import ops

TRAFFIC = {
    "identical": [1, 1, 1, 1],
    "distinct": [0, 1, 2, 3],
    "skewed": [3, 3, 3, 0],
    "uniform": [2, 0, 3, 1],
    "one row": [2],
    "reversed": [3, 2, 1, 0, 3, 2],
}
SIZES = {"even": (5, 64, 64, 8), "odd": (3, 37, 53, 1), "one token": (1, 7, 5, 3), "no token": (0, 6, 4, 2)}
TASKS = 4

traffic = pytest.mark.parametrize("route", TRAFFIC.values(), ids=TRAFFIC)
sizes = pytest.mark.parametrize(("tokens", "reads", "writes", "width"), SIZES.values(), ids=SIZES)
dtypes = pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=["f64", "f32"])


def draw(*shapes, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]


def bottleneck_arguments(rows, tokens, reads, writes, width, dtype=torch.float64):
    return draw(
        (rows, tokens, reads),
        (TASKS, width, reads),
        (TASKS, width),
        (TASKS, writes, width),
        (TASKS, writes),
        dtype=dtype,
    )


def bottleneck_row(x, down, down_bias, up, up_bias, activation):
    return activation(x @ down.T + down_bias) @ up.T + up_bias


@traffic
@sizes
@dtypes
def test_bottleneck_equals_a_loop_over_rows(route, tokens, reads, writes, width, dtype, tol):
    x, *weights = bottleneck_arguments(len(route), tokens, reads, writes, width, dtype)
    loop = torch.stack(
        [bottleneck_row(row, *(w[n] for w in weights), torch.tanh) for row, n in zip(x, route, strict=True)]
    )
    out = ops.bottleneck(x, *(w[route] for w in weights), torch.tanh)
    torch.testing.assert_close(out, loop, rtol=tol, atol=tol)


@traffic
@sizes
@dtypes
def test_add_low_rank_equals_a_loop_over_rows(route, tokens, reads, writes, width, dtype, tol):
    shapes = (len(route), tokens, reads), (len(route), tokens, writes), (TASKS, width, reads), (TASKS, writes, width)
    x, y, a, b = draw(*shapes, dtype=dtype)
    loop = torch.stack([own + 2 * (row @ a[n].T @ b[n].T) for row, own, n in zip(x, y, route, strict=True)])
    torch.testing.assert_close(ops.add_low_rank(y, x, a[route], b[route], 2.0), loop, rtol=tol, atol=tol)


@traffic
@pytest.mark.parametrize("inner", [(), (5,), (2, 3), (4, 4)], ids=str)
def test_per_task_gives_each_row_its_own_vector_under_any_inner_axes(route, inner):
    like, vector = draw((len(route), *inner, 7), (TASKS, 7))
    out = like + ops.per_task(vector[route], like)
    loop = torch.stack([row + vector[n] for row, n in zip(like, route, strict=True)])
    assert torch.equal(out, loop)


@pytest.mark.parametrize("inner", [(), (5,), (2, 3), (4, 3), (4, 4)], ids=str)
def test_a_routed_row_may_have_any_number_of_inner_axes(inner):
    # (4, ...) is as long as the batch: an axis that broadcasts by accident gives another row's weights, silently.
    route = [3, 0, 2, 0]
    x, *weights = bottleneck_arguments(4, 1, 6, 5, 2)
    (x,) = draw((4, *inner, 6))
    loop = torch.stack([bottleneck_row(row, *(w[n] for w in weights), F.relu) for row, n in zip(x, route, strict=True)])
    torch.testing.assert_close(ops.bottleneck(x, *(w[route] for w in weights), F.relu), loop, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 5, 6), (15, 6), (6,), (2, 3, 5, 6)], ids=str)
def test_without_a_route_every_row_is_of_the_one_task_however_laid_out(shape):
    x, *weights = bottleneck_arguments(1, 1, 6, 4, 3)
    (x,) = draw(shape)
    one = [w[:1] for w in weights]
    flat = x.reshape(-1, 6)
    expected = torch.stack([bottleneck_row(row, *(w[0] for w in one), torch.tanh) for row in flat])
    out = ops.bottleneck(x, *one, torch.tanh)
    torch.testing.assert_close(out, expected.view(*shape[:-1], 4), rtol=1e-12, atol=1e-12)
    assert torch.equal(ops.per_task(one[3], out), one[3][0])
    torch.testing.assert_close(ops.add_low_rank(out, x, one[0], one[2]), out + x @ one[0][0].T @ one[2][0].T)


@pytest.mark.parametrize("each", [1, 2, 3])
def test_rows_in_equal_runs_are_of_one_task_a_run(each):
    x, *weights = bottleneck_arguments(TASKS * each, 5, 6, 4, 3)
    route = [task for task in range(TASKS) for _ in range(each)]
    loop = torch.stack([bottleneck_row(row, *(w[n] for w in weights), F.relu) for row, n in zip(x, route, strict=True)])
    torch.testing.assert_close(ops.bottleneck(x, *weights, F.relu), loop, rtol=1e-12, atol=1e-12)
    like = loop
    assert torch.equal(like + ops.per_task(weights[3], like), like + weights[3][route][:, None])


@pytest.mark.parametrize("counts", [[4], [1, 1, 1, 1], [3, 1], [1, 2, 1]], ids=str)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("grad", [False, True])
def test_matrices_that_lie_apart_equal_matrices_in_one_tensor(counts, beams, grad):
    x, *weights = bottleneck_arguments(4 * beams, 5, 6, 4, 3)
    own = [n for n, count in enumerate(counts) for _ in range(count)]
    whole = [w[own] for w in weights]
    down, up = (
        ops.Pieces([w[n].flatten() for n in range(len(counts))], w.shape[1:], counts) for w in (weights[0], weights[2])
    )
    x.requires_grad_(grad)
    out = ops.bottleneck(x, down, whole[1], up, whole[3], torch.tanh)
    torch.testing.assert_close(out, ops.bottleneck(x, *whole, torch.tanh), rtol=1e-12, atol=1e-12)
    added = (ops.add_low_rank(out, x, *pair, 0.5) for pair in ((down, up), (whole[0], whole[2])))
    torch.testing.assert_close(*added, rtol=1e-12, atol=1e-12)
    if grad:
        (one,) = torch.autograd.grad(out.square().sum(), x)
        (other,) = torch.autograd.grad(ops.bottleneck(x, *whole, torch.tanh).square().sum(), x)
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("counts", [[1, 1, 2], [1, 1, 7]], ids=["few rows a task", "many"])
def test_matrices_of_tasks_with_few_rows_are_one_product(counts, monkeypatch):
    x, *weights = bottleneck_arguments(sum(counts), 5, 6, 4, 3)
    products, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args, **more: (products.append(args), mm(*args, **more))[1])
    with torch.no_grad():
        ops.linear(x, ops.Pieces([weights[0][n].flatten() for n in range(3)], weights[0].shape[1:], counts), None)
    assert len(products) == (0 if counts[-1] == 2 else 3)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_a_whole_norm_is_the_frozen_one_with_its_change(tasks, centre, grad):
    x, gain, bias, own_gain, own_bias = draw((6, 4, 5), (tasks, 5), (tasks, 5), (5,), (5,))
    own = ops.Own(own_gain, own_bias if centre else None, 1e-5, centre)
    given = [x, gain, *([bias] if centre else [])]
    for one in given:
        one.requires_grad_(grad)
    rest = (gain, bias if centre else None)
    with torch.set_grad_enabled(grad):
        out = ops.whole_norm(x, own, *rest)
        want = ops.norm_change(x, ops.frozen_norm(x, own), *rest, 1e-5, centre=centre)
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)
    if grad:
        found, wanted = (torch.autograd.grad(y.square().sum(), given) for y in (out, want))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_a_whole_norm_of_what_nobody_else_reads_is_written_over_it_where_no_gradients_are_wanted(centre, grad):
    x, gain, own_gain = draw((6, 4, 5), (3, 5), (5,))
    want = ops.whole_norm(before := x.clone(), ops.Own(own_gain, None, 1e-5, centre), gain, None)
    with torch.set_grad_enabled(grad):
        out = ops.whole_norm(x, ops.Own(own_gain, None, 1e-5, centre, alone=True), gain, None)
    assert torch.equal(out, want)
    assert torch.equal(x, before if grad else want)


@pytest.mark.parametrize("tasks", [1, 4])
def test_a_whole_norm_in_half_precision_keeps_differences_that_are_small_beside_the_gain(tasks):
    x = torch.randn(4, 8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    own = ops.Own(torch.ones(64).bfloat16(), torch.zeros(64).bfloat16(), 1e-5, True)
    gain, bias = torch.full((tasks, 64), 2e-3), torch.zeros(tasks, 64)
    with torch.no_grad():
        out = ops.whole_norm(x, own, gain, bias)
        alone = [ops.whole_norm(row[None], own, gain[:1], bias[:1]) for row in x]
    exact = ops.normalise(x.float(), 1e-5, centre=True)
    assert abs((out.float() / exact).median() - 1.002) < 5e-4  # 1 + 0.002 is 1 in bf16
    assert torch.equal(out, torch.cat(alone))  # a row is the same beside other tasks' rows


def test_pieces_refuse_rows_that_do_not_divide_among_them():
    x, *weights = bottleneck_arguments(5, 2, 6, 4, 3)
    with pytest.raises(RuntimeError, match="4 rows"):
        ops.linear(x, ops.Pieces([weights[0][n].flatten() for n in range(2)], weights[0].shape[1:], [3, 1]), None)


def test_rows_that_do_not_come_in_equal_runs_are_refused():
    x, *weights = bottleneck_arguments(TASKS + 1, 5, 6, 4, 3)
    with pytest.raises(RuntimeError):
        ops.bottleneck(x, *weights, F.relu)


@pytest.mark.parametrize("route", [None, [0, 2, 2]], ids=["one task", "routed"])
def test_gradients_of_every_operation_are_right(route):
    tasks = 1 if route is None else 3
    index = slice(None) if route is None else torch.tensor(route)
    x, *weights = (t.requires_grad_() for t in draw((3, 2, 4), (tasks, 2, 4), (tasks, 2), (tasks, 3, 2), (tasks, 3)))
    assert torch.autograd.gradcheck(
        lambda t, *w: ops.bottleneck(t, *(one[index] for one in w), torch.tanh), (x, *weights)
    )
    assert torch.autograd.gradcheck(
        lambda t, a, b: ops.add_low_rank(t[..., :3], t, a[index], b[index], 0.5), (x, weights[0], weights[2])
    )
    like = x[..., :3].detach()
    assert torch.autograd.gradcheck(lambda v: like * ops.per_task(v[index], like), (weights[3],))
    for centre in (True, False):
        assert torch.autograd.gradcheck(lambda t, centre=centre: ops.normalise(t, 1e-5, centre=centre), (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("route", [None, [0, 1, 1]], ids=["one task", "routed"])
def test_fp32_weights_are_used_in_the_states_number_type_and_get_fp32_gradients(dtype, route):
    index = [0] if route is None else torch.tensor(route)
    x, *weights = bottleneck_arguments(3, 4, 16, 16, 4, torch.float32)
    for w in weights:
        w.mul_(0.3).requires_grad_()
    low = x.to(dtype)

    def all_of_them(x):
        own = [w[index] for w in weights]
        out = ops.add_low_rank(ops.bottleneck(x, *own, F.gelu), x, own[0], own[2])
        return out * ops.per_task(own[3], out)

    out = all_of_them(low)
    assert out.dtype is dtype
    out.float().sum().backward()
    for w in weights:
        assert w.grad.dtype is torch.float32
        assert w.grad.isfinite().all()
    wide = all_of_them(x)
    torch.testing.assert_close(out.float(), wide, rtol=0.1, atol=0.1)


@dtypes
@pytest.mark.parametrize("shape", [(3, 5, 37), (2, 4, 3, 8), (4, 1)], ids=str)
def test_normalise_equals_the_formula_row_by_row(dtype, tol, shape):
    (x,) = draw(shape, dtype=dtype)
    rows = x.reshape(-1, shape[-1])
    layer = torch.stack([(r - r.mean()) / torch.sqrt(r.var(unbiased=False) + 1e-3) for r in rows]).view(shape)
    rms = torch.stack([r / math.sqrt(float((r * r).mean()) + 1e-3) for r in rows]).view(shape)
    torch.testing.assert_close(ops.normalise(x, 1e-3, centre=True), layer, rtol=tol, atol=tol)
    torch.testing.assert_close(ops.normalise(x, 1e-3, centre=False), rms, rtol=tol, atol=tol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("centre", [True, False])
def test_normalise_keeps_its_statistics_in_fp32(dtype, centre):
    # The squares of these overflow fp16 (65504), and their bf16 sum would lose most of its digits.
    (x,) = draw((2, 512), dtype=torch.float32)
    x = (x * 300 + 400).to(dtype)
    out = ops.normalise(x, 1e-6, centre=centre)
    assert out.dtype is dtype
    exact = ops.normalise(x.double(), 1e-6, centre=centre)
    torch.testing.assert_close(out.double(), exact, rtol=2**-7, atol=2**-7)


def test_dropout_zeroes_entries_of_the_inner_activation_and_keeps_its_mean():
    x, *weights = bottleneck_arguments(1, 1, 4, 1, 4000)
    weights[2][:] = 1.0
    weights[3][:] = 0.0
    one = [w[:1] for w in weights]
    plain = ops.bottleneck(x, *one, torch.sigmoid)
    torch.manual_seed(0)
    dropped = ops.bottleneck(x, *one, torch.sigmoid, dropout=0.5)
    assert not torch.equal(plain, dropped)
    torch.testing.assert_close(dropped, plain, rtol=0.1, atol=0)


@pytest.mark.parametrize("name", list(ops.ACTIVATIONS))
def test_every_non_linearity_keeps_shape_and_number_type(name):
    x = torch.linspace(-3, 3, 12, dtype=torch.bfloat16).view(3, 4)
    out = ops.ACTIVATIONS[name](x)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)


def test_non_linearities_with_two_names_agree_with_torch():
    x = torch.linspace(-3, 3, 13)
    assert torch.equal(ops.ACTIVATIONS["swish"](x), ops.ACTIVATIONS["silu"](x))
    tanh_gelu = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(ops.ACTIVATIONS["gelu_new"](x), tanh_gelu)
    torch.testing.assert_close(ops.ACTIVATIONS["gelu"](x), 0.5 * x * (1 + torch.erf(x / math.sqrt(2))))
    assert torch.equal(ops.ACTIVATIONS["linear"](x), x)
