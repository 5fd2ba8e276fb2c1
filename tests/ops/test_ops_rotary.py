"""Queries and keys that are turned by their positions, and whose function that stands for."""

import sys
import threading

import pytest
import torch
import transformers as tf

import tiny
from intarsia import ops
from intarsia.backbone import Backbone, rotary
from intarsia.ops import reference
from ops.on_device import DEVICE, both, poison  # noqa: F401 - a fixture for all tests here

LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3", "smollm3")


def numbers(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@both
@pytest.mark.parametrize(("heads", "groups", "width"), [(9, 3, 64), (4, 4, 16), (2, 1, 40), (5, 5, 6)])
@pytest.mark.parametrize(("rows", "tokens", "angles"), [(1, 7, 1), (3, 5, 3), (2, 1, 1)])
@pytest.mark.parametrize("dense", [True, False])
def test_the_kernel_turns_and_turns_back(heads, groups, width, rows, tokens, angles, dense, dtype, tol):
    pytest.importorskip("triton")
    from intarsia.ops.kernels.rotary import rotated

    both_ = numbers(rows, tokens, heads + groups, width, dtype=dtype)  # as a fused projection leaves them
    q, k = both_[:, :, :heads].transpose(1, 2), both_[:, :, heads:].transpose(1, 2)
    if dense:
        q, k = q.contiguous(), k.contiguous()
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    cos, sin = (numbers(angles, tokens, width, dtype=dtype, seed=s) for s in (1, 2))
    wide = [x.detach().double().requires_grad_() for x in (q, k)]
    made, want = rotated(q, k, cos, sin), reference.rotated(*wide, cos.double(), sin.double())
    grads = [numbers(*x.shape, dtype=dtype, seed=3) for x in made]
    ours = [*made, *torch.autograd.grad(made, [q, k], grads)]
    theirs = [*want, *torch.autograd.grad(want, wide, [grad.double() for grad in grads])]
    for own, other in zip(ours, theirs, strict=True):
        assert own.isfinite().all()
        assert (own.double() - other).norm() < tol * other.norm()
    assert made[0].transpose(1, 2).is_contiguous()  # as attention over packed rows takes them


@pytest.mark.parametrize("family", LIKE_LLAMA)
def test_a_familys_own_function_is_known(family):
    backbone = Backbone.wrap(tiny.build(family))
    _ = backbone.plain
    [module] = {
        sys.modules[type(m).__module__] for m in backbone.base.modules() if type(m).__name__.endswith("Attention")
    }
    assert hasattr(module.apply_rotary_pos_emb, rotary._OURS)


def test_it_is_theirs_outside_of_packed_passes_and_in_other_threads(monkeypatch):
    _ = Backbone.wrap(tiny.build("llama")).plain
    turn, calls = tf.models.llama.modeling_llama.apply_rotary_pos_emb, []
    monkeypatch.setattr(ops, "rotated", lambda *given: calls.append(1) or reference.rotated(*given))
    shapes = (1, 4, 3, 8), (1, 2, 3, 8), (1, 3, 8), (1, 3, 8)
    given = [torch.randn(shape) for shape in shapes]
    turn(*given)
    assert not calls
    with rotary.turning():
        other = threading.Thread(target=turn, args=given)
        other.start()
        other.join()
        assert not calls
        turn(*given)
        assert len(calls) == 1
        turn(*given, unsqueeze_dim=1)  # whatever we do not know goes to them
        assert len(calls) == 1
    turn(*given)
    assert len(calls) == 1


def test_another_computation_under_that_name_is_left_alone(monkeypatch):
    module = tf.models.llama.modeling_llama
    for other in (
        lambda q, k, cos, sin: (q * cos.unsqueeze(1), k * cos.unsqueeze(1)),
        lambda q, k: (q, k),
    ):
        monkeypatch.setattr(module, "apply_rotary_pos_emb", other)
        _ = Backbone.wrap(tiny.build("llama")).plain
        assert module.apply_rotary_pos_emb is other
