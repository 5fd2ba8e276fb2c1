"""Copies of backbones, and several banks on one: nobody's task acts in another's calls."""

import copy
import pickle
import warnings

import pytest
import torch

import tiny
from bank.mixed import held
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import BackboneError, TaskError
from intarsia.task import Task
from methods.every import METHODS, PROMPTED, new_task, stir, wrap

CLOSE = {"rtol": 0, "atol": 1e-5}
EACH = ["serial", "lora", "prefix flat", "prompt", "layer-norm", "full"]


def test_a_bank_is_neither_copied_nor_pickled_since_its_hooks_would_ask_the_first():
    bank = held("lora")
    for attempt in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TaskError, match="neither copied nor pickled"):
            attempt(bank)
    with torch.no_grad():
        batch = tiny.inputs("bert")
        want = bank(batch, tasks="lora")
        other = TaskBank(copy.deepcopy(bank.backbone), [copy.deepcopy(bank.tasks["lora"])])
        torch.testing.assert_close(other(batch, tasks="lora"), want, **CLOSE)


@pytest.mark.parametrize("method", EACH)
def test_a_copy_of_a_backbone_has_none_of_the_tasks_on_it(method):
    bank, batch = held(method), tiny.inputs("bert")
    with torch.no_grad():
        plain, want = bank.backbone.features(batch), bank(batch, tasks=method)
        bank.activate(method)
        twin = copy.deepcopy(bank.backbone)
        assert torch.equal(twin.features(batch), plain)
        assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in twin.model.modules())
        assert twin.model.config._attn_implementation == "sdpa"
        other = TaskBank(twin, [copy.deepcopy(bank.tasks[method])])
        assert torch.equal(other(batch, tasks=method), want)
        other.detach()
        assert torch.equal(twin.features(batch), plain)
        assert torch.equal(bank(batch, tasks=method), want)
        bank.detach()
    copy.deepcopy(bank.backbone)


@pytest.mark.parametrize("first", EACH)
def test_a_task_that_is_active_in_one_bank_has_no_part_in_anothers_calls(first):
    backbone, batch = wrap("bert"), tiny.inputs("bert")
    tasks = [stir(Task.new(n, backbone, {**METHODS, **PROMPTED}[n])).eval() for n in EACH]
    with torch.no_grad():
        plain, bank = backbone.features(batch), TaskBank(backbone, tasks)
        alone = {name: bank(batch, tasks=name) for name in EACH}
        before = TaskBank(backbone, copy.deepcopy(tasks))
        before.activate(first)
        active = backbone.features(batch)
        torch.testing.assert_close(active, alone[first], **CLOSE)
        for name in EACH:
            assert torch.equal(bank(batch, tasks=name), alone[name])
        assert torch.equal(torch.stack(bank(batch, tasks=[None] * 3)), plain)
        assert torch.equal(backbone.features(batch), active)
        for name in EACH:
            bank.activate(name)  # the model's own calls have one task
            torch.testing.assert_close(backbone.features(batch), alone[name], **CLOSE)
        before.activate(None)
        torch.testing.assert_close(backbone.features(batch), alone[name], **CLOSE)
        bank.activate(None)
        assert torch.equal(backbone.features(batch), plain)


def test_layers_that_run_again_do_so_without_a_task_that_is_active_in_another_bank():
    backbone, batch, labels = wrap("bert"), tiny.inputs("bert"), torch.tensor([0, 1, 2])
    for module in backbone.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    bank, other = (TaskBank(backbone, [new_task(backbone, n, name="t")]) for n in ("lora", "serial"))
    want = torch.autograd.grad(bank.loss(batch, labels, "t"), list(bank.tasks["t"].parameters()))
    other.activate("t")
    active = backbone.features(batch).detach()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable.*", category=FutureWarning)
        backbone.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    backbone.train_mode(True)
    bank.loss(batch, labels, "t").backward()
    for parameter, grad in zip(bank.tasks["t"].parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, grad, **CLOSE)
    assert all(parameter.grad is None for parameter in other.tasks["t"].parameters())
    backbone.train_mode(False)
    torch.testing.assert_close(backbone.features(batch), active, **CLOSE)


@pytest.mark.parametrize("method", ["serial", "layer-norm", "full"])
def test_a_copy_of_a_model_with_tasks_on_it_is_not_wrapped(method):
    bank = held(method)
    with pytest.raises(BackboneError, match="copy the backbone instead"):
        Backbone.wrap(copy.deepcopy(bank.backbone.model))
    Backbone.wrap(bank.backbone.model)
    bank.detach()
    Backbone.wrap(copy.deepcopy(bank.backbone.model))
