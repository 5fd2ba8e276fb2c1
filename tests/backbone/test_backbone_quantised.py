"""int8 weights: every method trains on them, and tasks go between int8 and dense backbones."""

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
EVERY = {**METHODS, **PROMPTED}
LABELS = torch.tensor([0, 1, 2])


@pytest.fixture(scope="module", params=["bert", "llama", "t5"])
def pair(request):
    """(dense, int8) backbones of one family with the same weights."""
    dense, small = tiny.build(request.param), tiny.build(request.param)
    quantise(small)
    return Backbone.wrap(dense), Backbone.wrap(small), tiny.inputs(request.param)


@pytest.mark.parametrize("method", EVERY)
def test_every_parameter_of_every_method_gets_a_gradient(pair, method):
    _, backbone, batch = pair
    try:
        task = stir(Task.new(method, backbone, EVERY[method], HEAD))
    except UnsupportedError:
        assert method == "bitfit", "only BitFit may find nothing to train: these families have no biases"
        return
    bank = TaskBank(backbone, [task])
    task.loss(bank(batch, tasks=method), LABELS).backward()
    bank.detach()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_linear_layers_hold_int8_and_answer_nearly_as_the_dense_ones(pair):
    dense, small, batch = pair
    kinds = {type(p).__name__ for p in small.base.parameters()}
    assert "Int8Tensor" in kinds or any("Quantized" in kind for kind in kinds), kinds
    with torch.no_grad():
        a, b = dense.features(batch), small.features(batch)
    assert not torch.equal(a, b), "int8 rounds, so some difference must show"
    assert (a - b).abs().max() < 0.1 * a.abs().max()


def test_a_task_trained_over_a_loaded_int8_backbone_opens_over_the_dense_one(tmp_path):
    folder = tmp_path / "model"
    tiny.build("llama").save_pretrained(folder)
    small, dense = (Backbone.load(str(folder), dtype=dtype, device="cpu") for dtype in ("int8", "float32"))
    assert small.fingerprint == dense.fingerprint
    task = stir(Task.new("t", small, PROMPTED["prefix"], HEAD))
    task.save(tmp_path / "task")
    loaded = Task.load(tmp_path / "task", dense)
    assert loaded.trained_parameters() == task.fold().trained_parameters()
