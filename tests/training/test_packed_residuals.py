"""Packed rows whose residual sums are left to the norms behind them: on a GPU, else through Triton's interpreter."""

import pytest
import torch

import tiny
from intarsia.backbone import Backbone, residuals
from intarsia.methods import BitFit, BottleneckAdapter, LayerNormTuning, LoRA, TopLayers
from intarsia.ops import Summed, again, fast
from intarsia.training.packed.stepper import PackedStepper
from ops.on_device import DEVICE
from training import test_packed
from training.test_packed import MEAN, check_gradients

pytest.importorskip("triton")

from intarsia.ops.kernels.adapted_norm import AdaptedNorm
from intarsia.ops.kernels.norms import SummedNorm

METHODS = {
    "adapters": [BottleneckAdapter(width=3)] * 2,
    "adapters without norms": [BottleneckAdapter(width=3, train_layer_norms=False)] * 2,
    "a layer's adapter alone": [BottleneckAdapter(width=3, leave_out=(0,))] * 2,
    "norms": [LayerNormTuning()],
    "lora": [LoRA(rank=2)] * 2,
    "the backbone's own norms": [TopLayers(k=1)],
    "some with biases": [BitFit(), BottleneckAdapter(width=3, train_layer_norms=False)],
    "all sorts": [*(test_packed.METHODS[name] for name in ("adapter", "norms", "lora", "prefix", "prompt")), BitFit()],
}


@pytest.fixture
def kernels(monkeypatch):
    """On any device, and without a graph, which would not come by what is counted here."""
    monkeypatch.setattr(fast, "fused", lambda x: x.dtype == torch.float32)
    monkeypatch.setattr(PackedStepper, "_capture", lambda _: None)
    monkeypatch.setattr(test_packed, "TOL", {"rtol": 1e-3, "atol": 1e-5})
    monkeypatch.setattr(test_packed, "stir", lambda task, seed: stirred(task, seed))


@pytest.fixture
def sums(monkeypatch, kernels):
    """Which norms made sums, and how many gradients each got; with adapters in plain torch."""
    seen = []
    whole = SummedNorm.backward

    def backward(ctx, *grads):
        seen.append((ctx.summed, sum(grad is not None for grad in grads)))
        return whole(ctx, *grads)

    monkeypatch.setattr(fast, "fused_activation", lambda *_: None)
    monkeypatch.setattr(SummedNorm, "backward", backward)
    return seen


@pytest.mark.parametrize("methods", METHODS)
def test_the_gradients_are_those_of_padded_batches_alone(methods, sums, tmp_path, monkeypatch):
    backbone = Backbone.wrap(tiny.build("bert").to(DEVICE, torch.float32))
    chosen = METHODS[methods]
    made, make = [], Summed.made
    monkeypatch.setattr(Summed, "made", lambda self: made.append(self) or make(self))
    check_gradients(backbone, chosen, [MEAN] * len(chosen), tmp_path, rows=2)
    packed = [made for made in sums if made[0]]
    if methods != "the backbone's own norms":
        assert packed
        # Biases change what is behind a norm that has been computed.
        assert not made or methods in ("some with biases", "all sorts")
    if methods == "adapters":  # two norms a layer; the last one's states go to the heads alone
        assert packed.count((True, 2)) == 2 * len(backbone.base.encoder.layer) - 1


ALONG = {
    "adapters": [BottleneckAdapter(width=3)] * 2,
    "adapters without norms": [BottleneckAdapter(width=3, train_layer_norms=False)] * 2,
    "parallel ones": [BottleneckAdapter(width=3, parallel=True)] * 2,
    "another method beside": [BottleneckAdapter(width=3), LoRA(rank=2)],
}


@pytest.mark.parametrize("methods", ALONG)
def test_adapters_are_computed_along_with_the_norms_behind_them(methods, kernels, tmp_path, monkeypatch):
    along, apply = [], AdaptedNorm.apply
    monkeypatch.setattr(AdaptedNorm, "apply", lambda *given: along.append(given) or apply(*given))
    backbone = Backbone.wrap(tiny.build("bert").to(DEVICE, torch.float32))
    check_gradients(backbone, ALONG[methods], [MEAN] * 2, tmp_path, rows=2)
    packed = 2 * len(backbone.base.encoder.layer) if methods in ("adapters", "adapters without norms") else 0
    assert sum(len(given[2]) == 2 for given in along) == packed


def stirred(task, seed):
    from methods.every import stir

    task = stir(task, seed=seed)
    task.double = lambda: task.float()  # the kernels compute in fp32
    return task


def test_the_blocks_compute_as_before_where_there_is_no_kernel(monkeypatch):
    backbone = Backbone.wrap(tiny.build("bert"))
    blocks = [module for module, _ in backbone.left_to_norms]
    assert len(blocks) == 4 * len(backbone.base.encoder.layer)
    block, call = backbone.left_to_norms[0]
    x, r = torch.randn(2, 3, block.dense.in_features), torch.randn(2, 3, block.dense.out_features)
    assert torch.equal(call(x, r), block(x, r))
    monkeypatch.setattr(residuals, "leaves_sums", lambda _: True)
    monkeypatch.setattr(fast, "fused", lambda _: False)
    assert torch.equal(call(x, r), block(x, r))


@pytest.mark.parametrize("family", ["gpt2", "llama", "distilbert", "vit"])
def test_blocks_of_another_sort_are_left_alone(family):
    assert not Backbone.wrap(tiny.build(family)).left_to_norms


def test_a_sum_is_a_tensor_to_everything_else():
    a, b, c = torch.randn(3, 4, 5)
    waiting = Summed(b)
    for total in (a + waiting, waiting + a, torch.add(a, waiting)):
        assert isinstance(total, Summed)
        assert torch.equal(total.made(), a + b)
        assert total.shape == (4, 5)
        assert torch.equal(total.mean(-1), (a + b).mean(-1))
        assert torch.equal(torch.nn.functional.layer_norm(total, (5,)), torch.nn.functional.layer_norm(a + b, (5,)))
        assert torch.equal(total + (c + waiting), a + b + c + b)
        for part, rows in zip(total.split([1, 3]), (a + b).split([1, 3]), strict=True):
            assert torch.equal(part.made(), rows)
    assert torch.equal(torch.add(a, waiting, alpha=2), a + 2 * b)
    assert torch.equal(waiting + 1, b + 1)
    assert (a.double() + waiting).dtype == torch.float64
    assert again(a) is a
