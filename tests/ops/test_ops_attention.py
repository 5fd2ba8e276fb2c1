"""Attention by products is attention: values and gradients, whatever the mask, the sizes and the number type."""

import pytest
import torch
from torch.nn import functional as F

from intarsia import ops
from ops.masks import masked

SIZES = {
    "square": (2, 3, 5, 5, 8),
    "longer keys": (3, 2, 4, 9, 7),
    "one query": (2, 4, 1, 6, 16),
    "one of all": (1, 1, 1, 1, 1),
}
MASKS = ("none", "padding", "causal", "additive")


def draw(size, dtype=torch.float64):
    rows, heads, queries, keys, width = size
    g = torch.Generator().manual_seed(0)
    shapes = [(rows, queries, heads, width), (rows, keys, heads, width), (rows, keys, heads, width)]
    # Laid out as a model has them: heads beside each other in a token's state.
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).transpose(1, 2).requires_grad_() for s in shapes]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", MASKS)
def test_it_equals_torchs_own_attention_in_values_and_gradients(kind, size):
    found, wanted = draw(size), draw(size)
    mask = masked(kind, size)
    out = ops.product_attention(*found, mask, 0.3)
    same = F.scaled_dot_product_attention(*wanted, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(out, same, rtol=1e-12, atol=1e-12)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    for own, other in zip(torch.autograd.grad(out, found, grad), torch.autograd.grad(same, wanted, grad), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", MASKS)
def test_bf16_is_within_its_rounding_of_the_exact_result(kind):
    size = SIZES["longer keys"]
    exact = ops.product_attention(*draw(size), masked(kind, size), 0.3)
    low = ops.product_attention(*draw(size, torch.bfloat16), masked(kind, size, torch.bfloat16), 0.3)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), exact, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_without_gradients_it_is_the_same(kind, size, dtype):
    inputs, mask = draw(size, dtype), masked(kind, size)  # what is added may be wider than the states
    exact = ops.product_attention(*(x.double() for x in inputs), mask, 0.3)
    with torch.no_grad():
        out = ops.product_attention(*inputs, mask, 0.3)
    assert out.dtype == dtype
    near = 1e-12 if dtype == torch.float64 else 3e-2
    torch.testing.assert_close(out.double(), exact, rtol=near, atol=near)
    torch.testing.assert_close(ops.product_attention(*inputs, mask, 0.3).double(), exact, rtol=near, atol=near)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_an_input_without_gradient_changes_nothing_for_the_others(frozen):
    size = SIZES["square"]
    every, some = draw(size), draw(size)
    some[frozen] = some[frozen].detach()
    rest = [i for i in range(3) if i != frozen]
    grads = [
        torch.autograd.grad(ops.product_attention(*x, None, 0.3).square().sum(), [x[i] for i in rest])
        for x in (every, some)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_query_that_sees_no_key_gives_no_nan(dtype, dropout):
    size = SIZES["square"]
    inputs = draw(size, dtype)
    mask = masked("causal", size).clone()
    mask[..., 2, :] = False
    out = ops.product_attention(*inputs, mask, 0.3, dropout)
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.float().sum(), inputs))


def test_dropout_keeps_the_mean_and_drops_whole_probabilities():
    torch.manual_seed(0)
    q, k = torch.zeros(1, 1, 2000, 4), torch.zeros(1, 1, 8, 4)
    out = ops.product_attention(q, k, torch.eye(8)[None, None], None, 1.0, 0.25)
    torch.testing.assert_close(out.mean(), torch.tensor(1 / 8), rtol=0.03, atol=0)
    assert set(out.unique().tolist()) == {0.0, (torch.tensor(1 / 8) / 0.75).item()}
