"""The attention kernel for bf16 on a CPU: exact within its rounding whatever sizes, strides and masks are; where it comes from."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.utils.checkpoint

from intarsia import ops
from intarsia.ops.frozen import side_by_side
from intarsia.ops.native import attention as native
from ops.masks import masked

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
    assert native.takes(*inputs[:2], mask)
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
def test_the_number_of_threads_changes_no_bit():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            inputs = [x.requires_grad_() for x in draw(SIZES["MRPC's"])]
            out = ops.product_attention(*inputs, masked("padding", SIZES["MRPC's"]), 0.3)
            found.append((out, *torch.autograd.grad(out, inputs, torch.ones_like(out))))
    finally:
        torch.set_num_threads(before)
    for more in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], more, strict=True))


def test_what_it_does_not_know_is_left_to_torch():
    q, k, _ = draw((1, 1, 4, 4, 32))
    assert not native.takes(q.float(), k.float(), None)
    assert not native.takes(q[..., :16], k[..., :16], None)
    assert not native.takes(q[:0], k[:0], None)
    assert not native.takes(q, k, torch.zeros(1, 1, 4, 4))


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
        with monkeypatch.context() as patch:
            patch.setattr(native.LIBRARY, "run", wrong)
            patch.setattr(native.LIBRARY, "_trusted", None)
            caplog.clear()
            assert not native.LIBRARY.there()
            assert "attention.c as compiled here computes something else" in caplog.text
    assert native.LIBRARY.there()


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


PROGRAM = """
    import logging
    import torch
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from intarsia import ops
    from intarsia.ops.native import attention as native
    print("there" if native.LIBRARY.there() else "not there")
    q, k, v = torch.randn(3, 1, 2, 5, 32).bfloat16().requires_grad_()
    ops.product_attention(q, k, v, None, 0.3).sum().backward()
"""


def run(**environment):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_without_a_compiler_torch_computes_it_and_a_line_says_so(tmp_path):
    said, log = run(CC="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    assert said == "not there"
    assert "no C compiler" in log
    said, log = run(CC="false", XDG_CACHE_HOME=str(tmp_path))
    assert said == "not there"
    assert "attention.c cannot be compiled, so torch computes it" in log


@there
def test_without_a_home_nothing_is_kept_where_others_could_write(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os.path\nos.path.expanduser = lambda path: path\n")
    said, log = run(XDG_CACHE_HOME="", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert said == "not there"
    assert "there is no home folder to keep it in; set XDG_CACHE_HOME" in log


@there
def test_what_torch_compiles_is_left_to_it():
    inputs = draw(SIZES["a prefix"])
    compiled = torch.compile(lambda q, k, v: ops.product_attention(q, k, v, None, 0.3), backend="eager", fullgraph=True)
    near(compiled(*inputs), exact(*inputs, None, torch.zeros_like(inputs[0]))[0])


@there
def test_it_is_compiled_once_and_again_where_its_file_is_broken(tmp_path):
    assert run(XDG_CACHE_HOME=str(tmp_path)) == ("there", "")
    (kept,) = (tmp_path / "intarsia" / "native").iterdir()
    first = kept.read_bytes()
    made = kept.stat().st_mtime_ns
    assert run(XDG_CACHE_HOME=str(tmp_path))[0] == "there"
    assert kept.stat().st_mtime_ns == made
    kept.write_bytes(b"")
    assert run(XDG_CACHE_HOME=str(tmp_path))[0] == "there"
    assert len(kept.read_bytes()) == len(first)


@there
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "intarsia").write_text("in the way")
    said, log = run(XDG_CACHE_HOME=str(tmp_path))
    assert said == "there"
    assert "is not kept" in log
