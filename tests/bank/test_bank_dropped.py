"""A bank that nobody has any more is gone, with its hooks and its tasks' memory."""

import gc
import threading
import weakref

import pytest
import torch

import tiny
from intarsia import Backbone, Head, Task, TaskBank
from intarsia.methods import METHODS
from intarsia.turns import Turns
from methods.every import stir

BATCH = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
NAMES = ["adapter", "lora", "prefix", "prompt", "bitfit"]  # at projections, norms, attentions, embeddings, parameters


@pytest.fixture
def backbone():
    return Backbone.wrap(tiny.build("bert"))


def tasks_of(backbone, *, frozen=True):
    options = {"prompt": {"init": "uniform"}}
    head = Head(labels=("no", "yes"))
    made = [Task.new(name, backbone, METHODS[name](**options.get(name, {})), head, seed=0) for name in NAMES]
    return [stir(task, 0.1).eval().requires_grad_(not frozen) for task in made]


def hooks_of(model):
    """Everything that is hooked or put in a module's place."""
    return {
        path: (len(module._forward_hooks), len(module._forward_pre_hooks), module.__dict__.get("forward") is not None)
        for path, module in model.named_modules()
    }


@pytest.mark.parametrize("frozen", [True, False], ids=["stored", "in training"])
def test_it_is_collected_at_once_and_the_model_is_as_before(backbone, frozen):
    before, attention = hooks_of(backbone.model), backbone.config._attn_implementation
    with torch.no_grad():
        plain = backbone.features(BATCH)
        gc.disable()  # nothing may wait for it
        try:
            bank = TaskBank(backbone, tasks_of(backbone, frozen=frozen))
            bank(BATCH, tasks=["lora"])
            assert hooks_of(backbone.model) != before
            left = weakref.ref(bank)
            del bank
            assert left() is None
        finally:
            gc.enable()
        assert hooks_of(backbone.model) == before
        assert backbone.config._attn_implementation == attention
        assert torch.equal(backbone.features(BATCH), plain)


def test_another_bank_on_the_same_places_stays(backbone):
    one, other = (TaskBank(backbone, tasks_of(backbone)) for _ in range(2))
    wanted = {name: one(BATCH, tasks=name) for name in one.tasks}
    del other
    for name, own in wanted.items():
        assert torch.equal(one(BATCH, tasks=name), own)


def test_the_models_own_calls_go_through_an_active_task_whoever_has_its_bank(backbone):
    plain = backbone.features(BATCH)
    bank = TaskBank(backbone, tasks_of(backbone))
    bank.activate("lora")
    active, left = backbone.features(BATCH), weakref.ref(bank)
    assert not torch.allclose(active, plain)
    del bank
    gc.collect()
    assert torch.equal(backbone.features(BATCH), active)
    left().activate(None)
    gc.collect()
    assert left() is None
    assert torch.equal(backbone.features(BATCH), plain)


def test_hooks_stay_until_the_call_that_goes_through_them_has_ended():
    turns, done, inside, go = Turns(), [], threading.Event(), threading.Event()

    def at_work():
        with turns:
            inside.set()
            go.wait(10)
            turns.when_free(lambda: done.append("own"))
            assert not done

    thread = threading.Thread(target=at_work)
    thread.start()
    inside.wait(10)
    turns.when_free(lambda: done.append("other's"))
    assert not done
    go.set()
    thread.join()
    assert done == ["other's", "own"]
    turns.when_free(lambda: done.append("at once"))
    assert done[-1] == "at once"
