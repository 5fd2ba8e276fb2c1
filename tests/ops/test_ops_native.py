"""The attention kernel for bf16 on a CPU: exact within its rounding whatever sizes, strides and masks are."""

import os
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
import torch.utils.checkpoint
from torch.fx.experimental.proxy_tensor import make_fx

from intarsia import ops
from intarsia.ops.frozen import side_by_side
from intarsia.ops.native import attention as native
from ops.masks import masked
from ops.wrong_code import is_refused

there = pytest.mark.skipif(not native.LIBRARY.there(), reason="needs a C compiler and torch with GNU OpenMP")
SIZES = {
    "MRPC's": (3, 4, 53, 53, 32),
    "one of all": (1, 1, 1, 1, 32),
    "one query": (2, 3, 1, 130, 32),
    "a prefix": (2, 2, 33, 43, 64),
    "more queries than keys": (2, 3, 70, 5, 96),
    "more than a block": (1, 2, 129, 129, 32),
    "whole blocks": (2, 1, 64, 128, 64),
    "wide": (1, 2, 17, 17, 128),
}
MASKS = ("none", "padding", "causal", "by head", "some see nothing")


def draw(size, *, joined=False):
    """q, k, v in float64, of numbers that bf16 has; joined: as columns of one tensor, as a product gives them."""
    rows, heads, queries, keys, width = size
    g = torch.Generator().manual_seed(0)
    if joined:
        whole = torch.randn(rows, queries, 3 * heads * width, generator=g).bfloat16()
        return [x.view(rows, queries, heads, width).transpose(1, 2) for x in whole.split(heads * width, -1)]
    shapes = [(rows, queries, heads, width), (rows, keys, heads, width), (rows, keys, heads, width)]
    return [torch.randn(shape, generator=g).bfloat16().transpose(1, 2) for shape in shapes]


def exact(q, k, v, mask, grad):
    """In float64: the result, and the gradients that belong to `grad`."""
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    scores = wide[0] @ wide[1].mT * 0.3
    if mask is not None:  # added, so that a query that sees nothing has the mean of all and all its gradients
        scores = scores + torch.where(mask, 0.0, -1e30)
        nothing = ~mask.any(-1, keepdim=True)
        scores = torch.where(nothing, wide[0] @ wide[1].mT * 0.0, scores)
    out = scores.softmax(-1) @ wide[2]
    return out, torch.autograd.grad(out, wide, grad.double())


def near(found, wanted):
    """Within a rounding or two of bf16 of the largest."""
    torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=1e-2 * float(wanted.detach().abs().max()) + 1e-6)


@there
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", MASKS[:4])
def test_values_and_gradients_are_exact_within_their_rounding(kind, size):
    mask, inputs = masked(kind, size), [x.requires_grad_() for x in draw(size)]
    assert native.takes(*inputs, mask)
    rows, heads, queries, _, width = size
    grad = (
        torch.randn(rows, queries, heads, width, generator=torch.Generator().manual_seed(2)).bfloat16().transpose(1, 2)
    )
    out = ops.product_attention(*inputs, mask, 0.3)
    wanted, slopes = exact(*inputs, mask, grad)
    near(out, wanted)
    for own, other in zip(torch.autograd.grad(out, inputs, grad), slopes, strict=True):
        near(own, other)
    with torch.no_grad():
        near(ops.product_attention(*inputs, mask, 0.3), wanted)
        assert torch.equal(native.attention(*inputs, mask, 0.3), out)


@there
def test_masks_may_lie_anyhow():
    q, k, v = draw(SIZES["MRPC's"])
    for mask in (masked("by head", SIZES["MRPC's"]), masked("causal", SIZES["MRPC's"])):
        wanted = native.attention(q, k, v, mask, 0.3)
        assert torch.equal(native.attention(q, k, v, mask.mT.contiguous().mT, 0.3), wanted)
        apart = torch.stack([mask, ~mask], -1)[..., 0]
        assert torch.equal(native.attention(q, k, v, apart, 0.3), wanted)
    rows = torch.tensor([True, False, True])[:, None, None, None]
    wanted = native.attention(q, k, v, rows.expand(3, 4, 53, 53).contiguous(), 0.3)
    assert torch.equal(native.attention(q, k, v, rows.expand(3, 1, 1, 53), 0.3), wanted)


@there
@pytest.mark.parametrize("size", [SIZES["MRPC's"], SIZES["one query"]], ids=["MRPC's", "one query"])
def test_a_query_that_sees_no_key_has_the_mean_of_all_values(size):
    mask, (q, k, v) = masked("some see nothing", size), draw(size)
    out = native.attention(q, k, v, mask, 0.3)
    wanted, _ = exact(q, k, v, mask, torch.zeros_like(q))
    near(out, wanted)


@there
def test_columns_of_one_product_get_their_gradients_in_one_tensor():
    size = SIZES["MRPC's"]
    q, k, v = (x.detach().requires_grad_() for x in draw(size, joined=True))
    out = ops.product_attention(q, k, v, None, 0.3)
    grad = torch.randn_like(out)
    own = torch.autograd.grad(out, (q, k, v), grad)
    for one, other in zip(own, exact(q, k, v, None, grad)[1], strict=True):
        near(one, other)
    rows, heads, queries, _, width = size
    flat = [x.transpose(1, 2).reshape(rows, queries, heads * width) for x in own]
    assert side_by_side(flat).data_ptr() == own[0].data_ptr()  # no copy


@there
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_gradients_that_nobody_wants_change_no_other(wanted):
    inputs = draw(SIZES["a prefix"])
    every = [x.detach().requires_grad_() for x in inputs]
    some = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    grads = []
    for each in (every, some):
        out = ops.product_attention(*each, None, 0.3)
        grads.append(torch.autograd.grad(out, [each[i] for i in wanted], torch.ones_like(out)))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


@there
def test_what_is_given_back_is_written_whole_whatever_was_in_memory():
    """torch fills new tensors with NaN here."""
    torch.use_deterministic_algorithms(True)
    try:
        for size in SIZES.values():
            inputs = [x.requires_grad_() for x in draw(size)]
            out = ops.product_attention(*inputs, masked("padding", size), 0.3)
            grads = torch.autograd.grad(out, inputs, torch.ones_like(out))
            assert all(bool(x.isfinite().all()) for x in (out, *grads))
    finally:
        torch.use_deterministic_algorithms(False)


@there
def test_what_is_no_number_is_not_hidden():
    q, k, v = draw(SIZES["MRPC's"])
    q[1, 2, 7, 3] = torch.nan
    out = ops.product_attention(q, k, v, None, 0.3)
    assert bool(out[1, 2, 7].isnan().all())
    assert int(out.isnan().any(-1).sum()) == 1


@there
@pytest.mark.parametrize("keys", [32, 53, 150])
def test_scores_beyond_all_numbers_are_not_hidden(keys):
    """All of a query's are minus infinity: torch has no number for it, and neither has a kernel that fills up its keys."""
    q, k, v = (torch.full((1, 2, keys, 32), number).bfloat16() for number in (1, 1e30, 1))
    q[0, 1, 3] = -1e30
    out = native.attention(q, k, v, None, 0.3)
    assert bool(out[0, 1, 3].isnan().all())
    assert int(out.isnan().any(-1).sum()) == 1


@there
def test_the_number_of_threads_changes_no_bit():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            inputs = [x.requires_grad_() for x in draw(SIZES["MRPC's"])]
            out = ops.product_attention(*inputs, masked("padding", SIZES["MRPC's"]), 0.3)
            found.append((out, *torch.autograd.grad(out, inputs, torch.ones_like(out))))
    finally:
        torch.set_num_threads(before)
    for more in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], more, strict=True))


def test_what_it_does_not_know_is_left_to_torch():
    q, k, v = draw((1, 1, 4, 4, 32))
    assert not native.takes(q.float(), k.float(), v.float(), None)
    assert not native.takes(q[..., :16], k[..., :16], v[..., :16], None)
    assert not native.takes(q[:0], k[:0], v[:0], None)
    assert not native.takes(q, k, v, torch.zeros(1, 1, 4, 4))
    assert not native.takes(q, k, v.float(), None)
    assert not native.takes(q, k[:, :, :2], v, None)
    assert not native.takes(q.repeat(1, 2, 1, 1), k, v, None)  # whose heads share keys


@there
def test_values_may_be_narrower_than_keys():
    """DeepSeek's are: 128 numbers beside 192."""
    q, k, _ = (x.requires_grad_() for x in draw((2, 2, 20, 20, 64)))
    v = draw((2, 2, 20, 20, 32))[2].requires_grad_()
    out = ops.product_attention(q, k, v, None, 0.3)
    assert out.shape == v.shape
    wanted, slopes = exact(q, k, v, None, grad := torch.randn_like(out))
    near(out, wanted)
    for own, other in zip(torch.autograd.grad(out, (q, k, v), grad), slopes, strict=True):
        near(own, other)
    with torch.no_grad():
        near(ops.product_attention(q, k, v, None, 0.3), wanted)


@there
def test_what_is_given_back_may_be_changed_in_place():
    inputs = [x.requires_grad_() for x in draw(SIZES["a prefix"])]
    plain = ops.product_attention(*inputs, None, 0.3)
    doubled = ops.product_attention(*inputs, None, 0.3).mul_(2)
    assert torch.equal(doubled, plain * 2)
    for one, other in zip(*(torch.autograd.grad(out.sum(), inputs) for out in (doubled, plain)), strict=True):
        near(one, 2 * other.double())


@there
def test_who_looks_into_what_is_computed_sees_torch():
    """A kernel's result would be a constant in what torch.jit has traced, and torch.func has no rule for it."""
    q, k, v = draw(SIZES["MRPC's"])
    assert native.takes(q, k, v, None)
    batch = torch.stack([q, 2 * q])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        mapped = torch.func.vmap(lambda each: ops.product_attention(each, k, v, None, 0.3))(batch)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(lambda each: ops.product_attention(each, k, v, None, 0.3), q, check_trace=False)
    seen = make_fx(lambda each: ops.product_attention(each, k, v, None, 0.3))(q)
    for own, found in ((q, mapped[0]), (2 * q, mapped[1]), (2 * q, traced(2 * q)), (2 * q, seen(2 * q))):
        near(found, exact(own, k, v, None, torch.zeros_like(q))[0])


@there
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_without_room_for_a_head_there_is_an_error_and_the_process_goes_on():
    program = """
        import resource, torch
        from intarsia.ops.native import attention as native
        torch.set_num_threads(2)
        q, k = torch.randn(1, 2, 1, 32).bfloat16().requires_grad_(), torch.randn(1, 2, 400_000, 32).bfloat16()
        small = torch.randn(1, 2, 8, 32).bfloat16()
        wanted = native.attention(q, small, small, None, 0.3)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, -1))
        try:
            native.attention(q, k, k, None, 0.3)
        except MemoryError as error:
            print(error)
        print(torch.equal(native.attention(q, small, small, None, 0.3), wanted))
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, env=env)
    assert done.stdout.splitlines() == ["there is no memory left for attention; use smaller batches", "True"], (
        done.stderr
    )


@there
def test_machine_code_that_computes_something_else_is_not_used(monkeypatch, caplog):
    """Of a compiler, a processor or a system with a fault: queries and keys in each other's place, and a gradient too few."""
    right = native.LIBRARY.run

    def swapped(name, shape, *more):
        to, (q, k, *rest) = ([], more) if name == "attention_forward" else ([more[0]], more[1:])
        right(name, shape, *to, k, q, *rest)

    def forgetful(name, *more):
        right(name, *more[:-1], None if name == "attention_backward" else more[-1])

    for wrong in (swapped, forgetful):
        is_refused(native.LIBRARY, wrong, monkeypatch, caplog)


@there
def test_it_is_tried_out_of_the_callers_modes():
    """Checkpointing counts what is saved, and would count the trial's, too."""
    native.LIBRARY.forget()
    inputs = [x.requires_grad_() for x in draw(SIZES["MRPC's"])]

    def run(q, k, v):
        return ops.product_attention(q, k, v, None, 0.3)

    out = torch.utils.checkpoint.checkpoint(run, *inputs, use_reentrant=False)
    grads = torch.autograd.grad(out.sum(), inputs)
    same = torch.autograd.grad(run(*inputs).sum(), inputs)
    assert all(torch.equal(one, other) for one, other in zip(grads, same, strict=True))
    native.LIBRARY.forget()
    with torch.inference_mode(), torch.autocast("cpu"):
        assert native.LIBRARY.there()


@there
def test_what_torch_compiles_is_left_to_it():
    inputs = draw(SIZES["a prefix"])
    compiled = torch.compile(lambda q, k, v: ops.product_attention(q, k, v, None, 0.3), backend="eager", fullgraph=True)
    near(compiled(*inputs), exact(*inputs, None, torch.zeros_like(inputs[0]))[0])
