"""A prefix in the attention kernel for bf16 on a CPU: as if its keys and values stood before each row's own."""

import pytest
import torch

from intarsia import ops
from intarsia.ops.native import attention as native
from ops.masks import masked
from ops.test_ops_native import draw, exact, near

pytestmark = pytest.mark.skipif(not native.LIBRARY.there(), reason="needs a C compiler and torch with GNU OpenMP")
SIZES = {
    "MRPC's": (4, 3, 53, 53, 32),
    "one of all": (2, 1, 1, 1, 32),
    "full of keys": (2, 2, 20, 32, 64),
    "an encoder's": (4, 2, 5, 90, 96),
    "more than a block": (2, 2, 70, 129, 32),
}


def before(size, count, length, dtype):
    """Keys and values (N, H, P, D), of numbers that bf16 has."""
    shape = (2, count, size[1], length, size[4])
    draws = torch.randn(shape, generator=torch.Generator().manual_seed(5)).bfloat16().to(dtype)
    return draws[0].clone().requires_grad_(), draws[1].clone().requires_grad_()


def longer(size, length, kind):
    """The mask of a row's own keys, behind what everyone sees."""
    mask = masked(kind, size)
    return None if mask is None else torch.nn.functional.pad(mask, (length, 0), value=True)


def wanted(inputs, prefix, mask, grad):
    """In float64: the result, and the gradients of queries, keys, values, and the prefix's."""
    q, k, v = inputs
    length, count = prefix[0].shape[2], len(prefix[0])
    whole = [
        torch.cat([p.repeat_interleave(len(q) // count, 0).to(x.dtype), x], 2)
        for p, x in zip(prefix, (k, v), strict=True)
    ]
    out, (for_q, *both) = exact(q, *whole, mask, grad)
    first = [x[:, :, :length].unflatten(0, (count, -1)).sum(1) for x in both]
    return out, [for_q, *(x[:, :, length:] for x in both), *first]


def drawn(size):
    grad = torch.randn(size[0], size[2], size[1], size[4], generator=torch.Generator().manual_seed(2))
    return [x.requires_grad_() for x in draw(size)], grad.bfloat16().transpose(1, 2)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("count", "length"), [(1, 10), (2, 1), (2, 32), (1, 75)])
@pytest.mark.parametrize("kind", ["none", "padding", "causal"])
def test_values_and_gradients_are_exact_within_their_rounding(size, count, length, kind):
    (inputs, grad), prefix = drawn(size), before(size, count, length, torch.float32)
    mask = longer(size, length, kind)
    out = native.attention(*inputs, mask, 0.3, prefix)
    own = torch.autograd.grad(out, (*inputs, *prefix), grad)
    same, slopes = wanted(inputs, prefix, mask, grad)
    near(out, same)
    for one, other in zip(own, slopes, strict=True):
        near(one, other)
    assert [one.dtype for one in own[3:]] == [torch.float32] * 2
    with torch.no_grad():
        assert torch.equal(native.attention(*inputs, mask, 0.3, prefix), out)


@pytest.mark.parametrize("learns", [(3,), (4,), (3, 4), (0, 4), (1, 3), (2,)], ids=str)
def test_gradients_that_nobody_wants_change_no_other(learns):
    """In the lowest layer of a frozen backbone only the prefix has any."""
    size = SIZES["MRPC's"]
    (inputs, grad), grads = drawn(size), []
    every = [*inputs, *before(size, 2, 10, torch.bfloat16)]
    for each in (every, [x.detach().requires_grad_(i in learns) for i, x in enumerate(every)]):
        out = native.attention(*each[:3], longer(size, 10, "padding"), 0.3, tuple(each[3:]))
        grads.append(torch.autograd.grad(out, [each[i] for i in learns], grad))
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_what_is_given_back_is_written_whole_whatever_was_in_memory():
    """torch fills new tensors with NaN here."""
    torch.use_deterministic_algorithms(True)
    try:
        for size in SIZES.values():
            (inputs, grad), prefix = drawn(size), before(size, 2, 10, torch.float32)
            out = native.attention(*inputs, longer(size, 10, "padding"), 0.3, prefix)
            found = torch.autograd.grad(out, (*inputs, *prefix), grad)
            assert all(bool(x.isfinite().all()) for x in (out, *found))
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_number_of_threads_changes_no_bit():
    count, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            size = SIZES["MRPC's"]
            (inputs, grad), prefix = drawn(size), before(size, 2, 10, torch.float32)
            out = native.attention(*inputs, longer(size, 10, "padding"), 0.3, prefix)
            found.append((out, *torch.autograd.grad(out, (*inputs, *prefix), grad)))
    finally:
        torch.set_num_threads(count)
    for more in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], more, strict=True))


def test_columns_of_one_product_get_their_gradients_in_one_tensor():
    size = SIZES["MRPC's"]
    q, k, v = (x.detach().requires_grad_() for x in draw(size, joined=True))
    out = native.attention(q, k, v, None, 0.3, before(size, 1, 10, torch.float32))
    own = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    rows, heads, queries, _, width = size
    flat = [x.transpose(1, 2).reshape(rows, queries, heads * width) for x in own]
    assert ops.frozen.side_by_side(flat).data_ptr() == own[0].data_ptr()  # no copy


@pytest.mark.parametrize("kind", ["padding", "causal"])
@pytest.mark.parametrize("learns", [True, False])
def test_it_is_what_longer_keys_and_values_give_where_there_is_no_kernel(kind, learns, monkeypatch):
    size = SIZES["MRPC's"]
    (inputs, grad), prefix = drawn(size), before(size, 2, 10, torch.float32)
    mask, found = longer(size, 10, kind), []
    for there in (True, False):
        monkeypatch.setattr(native.LIBRARY, "_trusted", there)
        with torch.set_grad_enabled(learns):
            out = ops.product_attention(*inputs, mask, 0.3, prefix=prefix)
        found.append([out, *(torch.autograd.grad(out, (*inputs, *prefix), grad) if learns else ())])
    for one, other in zip(*found, strict=True):
        near(one, other.double())
