"""Weights in int8 or 4 bits: every method trains on them, and tasks go between such and dense backbones."""

import pytest
import torch

import tiny
from intarsia.backbone import Backbone
from intarsia.backbone.loading import quantise
from intarsia.bank import TaskBank
from intarsia.errors import UnsupportedError
from intarsia.task import Task
from methods.every import HEAD, METHODS, PROMPTED, stir

pytest.importorskip("torchao", reason="int8 backbones are made by torchao, which is in the extra `dev`")
pytest.importorskip("bitsandbytes", reason="4-bit backbones are made by bitsandbytes, which is in the extra `dev`")
EVERY = {**METHODS, **PROMPTED}
LABELS = torch.tensor([0, 1, 2])


@pytest.fixture(scope="module", params=[(f, d) for f in ("bert", "llama", "t5") for d in ("int8", "nf4")], ids=" ".join)
def pair(request):
    """(dense, quantised) backbones of one family with the same weights."""
    family, dtype = request.param
    dense, small = tiny.build(family), tiny.build(family)
    quantise(small, dtype)
    return Backbone.wrap(dense), Backbone.wrap(small), tiny.inputs(family)


@pytest.mark.parametrize("method", EVERY)
def test_every_parameter_of_every_method_gets_a_gradient(pair, method):
    _, backbone, batch = pair
    try:
        task = stir(Task.new(method, backbone, EVERY[method], HEAD))
    except UnsupportedError:
        whole = method in ("full", "top-layers") and any(
            type(p).__name__ == "Params4bit" for p in backbone.base.parameters()
        )
        assert method == "bitfit" or whole, "BitFit may find nothing to train, and 4-bit weights cannot be replaced"
        return
    bank = TaskBank(backbone, [task])
    task.loss(bank(batch, tasks=method), LABELS).backward()
    bank.detach()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_linear_layers_hold_few_bits_and_answer_nearly_as_the_dense_ones(pair):
    dense, small, batch = pair
    kinds = {type(p).__name__ for p in small.base.parameters()}
    assert kinds & {"Int8Tensor", "Params4bit"} or any("Quantized" in kind for kind in kinds), kinds
    with torch.no_grad():
        a, b = dense.features(batch), small.features(batch)
    assert not torch.equal(a, b), "rounded weights, so some difference must show"
    likeness = torch.stack([a.flatten(), b.flatten()]).corrcoef()[0, 1]
    assert likeness > (0.75 if "Params4bit" in kinds else 0.99), (
        "tiny random models feel 4 bits more than trained ones do"
    )


def test_who_has_answered_without_gradients_can_still_be_trained_on(pair):
    """On a CPU bitsandbytes would lay out its weights anew, with no way back."""
    _, backbone, batch = pair
    with torch.no_grad():
        backbone.features(batch)
    task = stir(Task.new("t", backbone, METHODS["serial"], HEAD))
    bank = TaskBank(backbone, [task])
    task.loss(bank(batch, tasks="t"), LABELS).backward()
    bank.detach()
    assert all(parameter.grad is not None for parameter in task.parameters())


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_a_task_trained_over_a_loaded_quantised_backbone_opens_over_the_dense_one(tmp_path, dtype):
    folder = tmp_path / "model"
    tiny.build("llama").save_pretrained(folder)
    small, dense = (Backbone.load(str(folder), dtype=name, device="cpu") for name in (dtype, "float32"))
    assert small.fingerprint == dense.fingerprint
    task = stir(Task.new("t", small, PROMPTED["prefix"], HEAD))
    task.save(tmp_path / "task")
    loaded = Task.load(tmp_path / "task", dense)
    assert loaded.trained_parameters() == task.fold().trained_parameters()
