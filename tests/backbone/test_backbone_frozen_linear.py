"""A trunk whose frozen layers share products, or have them by a kernel of ours (as where there is AMX, which few machines that test
have), computes as any other."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tiny
from intarsia import Backbone, Head, Task, TaskBank
from intarsia.backbone import frozen_linear
from intarsia.methods import METHODS
from intarsia.ops.native import products
from intarsia.training import TrainSettings
from intarsia.training.packed import arranged
from methods.every import stir

OPTIONS = {"prompt": {"init": "uniform"}}
there = pytest.mark.skipif(not products.LIBRARY.there(), reason="needs a C compiler and torch with GNU OpenMP")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """on -> a backbone, with its products by the kernel or plain."""
    tiny.build("bert").save_pretrained(tmp_path)

    def loaded(on, dtype="bfloat16"):
        monkeypatch.setattr(products, "amx", lambda: on)
        backbone = Backbone.load(str(tmp_path), dtype=dtype, device="cpu")
        monkeypatch.setattr(products, "amx", lambda: False)
        return backbone

    return loaded


@pytest.fixture
def paneled(load):
    return load(True)


def near(found, wanted):
    """Within some roundings of bf16 of the largest."""
    wanted = wanted.double()
    torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=1e-2 * float(wanted.detach().abs().max()) + 1e-6)


def step(backbone, method):
    """The loss and the gradients of one task."""
    task = Task.new(
        "one", backbone, METHODS[method](**OPTIONS.get(method, {})), Head(labels=("no", "yes"), dropout=0.0), seed=0
    )
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(5, 90, (3, 7)))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    loss = TaskBank(backbone, [task]).loss(batch, torch.tensor([0, 1, 1]), task="one")
    loss.backward()
    return loss.detach(), {name: x.grad for name, x in task.named_parameters() if x.grad is not None}


@there
@pytest.mark.parametrize(
    "method", ["adapter", "lora", "prefix", "prompt", "bitfit", "layer-norm", "full", "top-layers", "head"]
)
def test_losses_and_gradients_are_the_plain_trunks(load, paneled, method):
    """As far from those in float32 as a plain trunk's in bf16 are."""
    plain, wide = load(False), load(False, "float32")
    assert paneled.paneled
    assert not plain.paneled
    (loss, grads), (_, same), (exact, wanted) = (step(backbone, method) for backbone in (paneled, plain, wide))
    torch.testing.assert_close(loss.float(), exact.float(), rtol=1e-2, atol=1e-2)
    assert grads.keys() == wanted.keys()
    assert grads

    def off(found):
        return sum(float((found[name].double() - grad).square().sum()) for name, grad in wanted.items()) ** 0.5

    scale = sum(float(grad.square().sum()) for grad in wanted.values()) ** 0.5
    assert off(grads) < max(1.5 * off(same), 0.01 * scale)
    assert off(same) < 0.1 * scale  # or nothing was compared


@there
def test_what_is_not_trained_through_has_one_copy_of_the_weights(load, paneled, monkeypatch):
    plain, calls, real = load(False), [], frozen_linear.frozen_linear
    monkeypatch.setattr(frozen_linear, "frozen_linear", lambda *a, **more: calls.append(1) or real(*a, **more))
    batch = {"input_ids": torch.tensor([[5, 6, 7]])}
    with torch.inference_mode():
        without = paneled.features(batch)
        near(without, plain.features(batch))
    # Two of each layer (q, k and v are one; the feed-forward's 48 are no multiple of 32), and the pooler's.
    assert len(calls) == len(paneled.paneled) == 2 * 2 + 1
    assert {way for layers in paneled.paneled for way in layers._whole.made} == {False}
    step(paneled, "lora")
    assert any(way for layers in paneled.paneled for way in layers._whole.made)
    with torch.inference_mode():
        assert torch.equal(paneled.features(batch), without)


@there
@torch.inference_mode()
def test_rows_of_all_methods_mixed_are_as_over_a_plain_trunk(load, paneled):
    plain, batch = load(False), {"input_ids": torch.tensor([[5, 6, 7, 8]] * 5)}
    names = ["adapter", "lora", "prefix", "prompt", None]
    found = []
    for backbone in (plain, paneled):
        tasks = [
            stir(Task.new(name, backbone, METHODS[name](**OPTIONS.get(name, {})), seed=0), 0.1).eval()
            for name in names[:-1]
        ]
        found.append(TaskBank(backbone, [task.requires_grad_(False) for task in tasks])(batch, tasks=names))
    for own, wanted in zip(*found, strict=True):
        near(own, wanted)


@there
def test_a_weight_that_changes_in_place_or_makes_way_is_seen(paneled):
    linear = next(layers.modules[0] for layers in paneled.paneled if len(layers.modules) == 1)
    x = torch.randn(2, linear.in_features).bfloat16()
    before = linear(x)
    with torch.no_grad():
        linear.weight.mul_(2)
    near(linear(x), F.linear(x, linear.weight, linear.bias))
    assert not torch.allclose(linear(x), before)
    for _ in range(4):  # what a cast to and fro does: other numbers, perhaps where older ones were
        linear.weight.data = linear.weight.data + 1
        near(linear(x), F.linear(x, linear.weight, linear.bias))
    linear.weight = torch.nn.Parameter(torch.zeros_like(linear.weight), requires_grad=False)
    torch.testing.assert_close(linear(x), linear.bias.expand(2, -1))


@there
def test_the_model_is_transformers_own_in_all_else(load, paneled):
    plain = load(False)
    assert paneled.model.state_dict().keys() == plain.model.state_dict().keys()
    assert paneled.fingerprint == plain.fingerprint
    twin = copy.deepcopy(paneled.model)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(twin(ids).last_hidden_state, paneled.model(ids).last_hidden_state)
    with torch.no_grad():
        next(m for m in twin.modules() if type(m) is torch.nn.Linear).weight.zero_()
    assert not torch.allclose(twin(ids).last_hidden_state, paneled.model(ids).last_hidden_state)
    wide = copy.deepcopy(plain.model).double()
    torch.testing.assert_close(paneled.model.double()(ids).last_hidden_state, wide(ids).last_hidden_state)


@there
def test_a_trunk_too_large_for_two_copies_is_left_alone(load, monkeypatch):
    monkeypatch.setattr(frozen_linear, "SHARE", 0.0)
    assert not load(True).paneled


def test_quantised_layers_compute_as_they_did(load):
    pytest.importorskip("torchao")
    backbone = load(True, dtype="int8")
    assert not backbone.paneled
    loss, grads = step(backbone, "lora")
    same, wanted = step(load(False, dtype="int8"), "lora")
    assert torch.equal(loss, same)
    assert all(torch.equal(grad, wanted[name]) for name, grad in grads.items())


@there
def test_batches_are_of_like_length_as_elsewhere(load, paneled):
    settings = TrainSettings(epochs=1, batch_size=2)
    for backbone in (paneled, load(False)):
        task = Task.new("one", backbone, METHODS["lora"](), Head(labels=("no", "yes")), seed=0)
        assert arranged("auto", task, backbone, settings) == "like"


@pytest.mark.parametrize(
    ("kind", "groups"),
    [("bert", [[32] * 3] * 2), ("llama", [[32, 16, 16]] * 2), ("gpt2", []), ("t5", [[24] * 3] * 4)],
)
def test_queries_keys_and_values_of_self_attention_are_one_group(kind, groups):
    backbone = wrapped(kind)
    assert [[module.out_features for module in layers.modules] for layers in backbone.joined] == groups


def wrapped(kind):
    return Backbone.wrap(tiny.build(kind))


def in_packed(backbone):
    """The first layer's projections with their joined forwards, and states."""
    (q, _), (k, _), (v, _) = backbone.joined[0].calls
    for layer, call in backbone.joined[0].calls:
        layer.__dict__["forward"] = call
    return q, k, v, torch.randn(2, 3, q.in_features, dtype=q.weight.dtype, requires_grad=True)


def test_the_first_that_is_called_has_the_others_outputs(monkeypatch):
    q, k, v, x = in_packed(wrapped("bert"))
    calls = []
    real = frozen_linear.frozen_linear
    monkeypatch.setattr(frozen_linear, "frozen_linear", lambda *a: calls.append(1) or real(*a))
    for layer in (q, k, v):
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert len(calls) == 1
    other = torch.randn_like(x)
    q(x)
    torch.testing.assert_close(k(other), F.linear(other, k.weight, k.bias))  # what waited was of other states
    torch.testing.assert_close(q(other), F.linear(other, q.weight, q.bias))
    assert len(calls) == 3  # the queries of these states were there


def test_the_weights_share_memory_and_are_saved_and_changed_as_ever(tmp_path):
    backbone = wrapped("bert")
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    q, k, v, x = in_packed(backbone)
    q(x)
    assert q.weight.untyped_storage().data_ptr() == v.weight.untyped_storage().data_ptr()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    places = [tensor.data_ptr() for tensor in (q.weight, k.weight, k.bias)]
    with torch.no_grad():
        k.weight.mul_(2)
        k.bias.add_(1)
    for layer in (q, k, v):
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert [tensor.data_ptr() for tensor in (q.weight, k.weight, k.bias)] == places  # a graph reads them there
    v.weight.data = v.weight.data + 1
    for layer in (q, k, v):
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    backbone.model.save_pretrained(tmp_path)
    again = type(backbone.model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in backbone.model.state_dict().items())


def test_a_stand_in_is_used_and_left_as_it_is():
    backbone = wrapped("bert")
    q, k, v, x = in_packed(backbone)
    frozen, stand_in = k.weight, torch.nn.Parameter(torch.ones_like(k.weight))
    k.weight = stand_in
    q(x)
    torch.testing.assert_close(k(x), F.linear(x, stand_in, k.bias))
    v(x)
    assert not backbone.joined[0]._waiting  # nor is what nobody wanted kept
    assert torch.equal(stand_in, torch.ones_like(stand_in))
    k.weight = frozen
    torch.testing.assert_close(k(x), F.linear(x, frozen, k.bias))
    k.weight.requires_grad_(True)
    assert torch.autograd.grad(k(x).sum(), k.weight)[0].abs().sum() > 0
    torch.testing.assert_close(v(x), F.linear(x, v.weight, v.bias))


def test_what_was_first_used_in_inference_mode_can_be_trained_through():
    q, k, v, x = in_packed(wrapped("bert"))
    with torch.inference_mode():
        for layer in (q, k, v):
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    (found,) = torch.autograd.grad(q(x).sum() + k(x).cos().sum(), x)
    (wanted,) = torch.autograd.grad(F.linear(x, q.weight).sum() + F.linear(x, k.weight, k.bias).cos().sum(), x)
    torch.testing.assert_close(found, wanted)
    assert not q.weight.is_inference()
