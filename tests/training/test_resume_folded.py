"""Methods whose training form is not the one that is shipped: a run killed at any step ends with the bits of one that was not."""

import pytest
import torch
from safetensors.torch import load_file
from train_standins import TinySource, lines, same_bits, settings, validation

from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.heads import Head
from intarsia.methods import Method, PrefixTuning, PTuning
from intarsia.task import Task
from intarsia.training import evaluate, fit
from intarsia.training.checkpoint import read_checkpoint
from tiny import build

METHODS = {
    "prefix": PrefixTuning(length=3, mid=8, gating=True, dropout=0.1),
    "ptuning": PTuning(length=3, encoder="mlp"),
    "ptuning-lstm": PTuning(length=3, encoder="lstm"),
}
CHOSEN = settings(epochs=2, learning_rate=0.05, checkpoint_every=2, evaluate_every=3)


class Fails(TinySource):
    """Fails at the n-th batch: stands for a kill at that step."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def load(self, key):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("killed")
        return super().load(key)


def new(method: Method) -> tuple[TaskBank, Task]:
    backbone = Backbone.wrap(build("bert"))
    task = Task.new("t", backbone, method, Head(labels=("no", "yes")))
    return TaskBank(backbone, [task]), task


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("after", [3, 8])
def test_a_stop_at_any_step_changes_no_bit(tmp_path, name, after):
    bank, task = new(METHODS[name])
    with pytest.raises(RuntimeError, match="killed"):
        fit(bank, task, Fails(after), validation(), CHOSEN, tmp_path / "a")
    checkpoint = read_checkpoint(tmp_path / "a")
    assert checkpoint is not None
    assert checkpoint.group("task").keys() == new(METHODS[name])[1].tensors().keys(), "not in the training form"
    bank, task = new(METHODS[name])
    fit(bank, task, TinySource(), validation(), CHOSEN, tmp_path / "a", resume=True)
    bank, calm = new(METHODS[name])
    fit(bank, calm, TinySource(), validation(), CHOSEN, tmp_path / "b")
    assert same_bits(task.tensors(), calm.tensors())
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


@pytest.mark.parametrize("name", METHODS)
def test_the_task_ends_in_the_form_that_is_shipped(tmp_path, name):
    bank, task = new(METHODS[name])
    trained = task.trained_parameters()
    result = fit(bank, task, TinySource(), validation(), CHOSEN, tmp_path)
    assert task.trained_parameters() < trained
    assert same_bits(task.tensors(), load_file(tmp_path / "task.safetensors"))
    # The bank scores with the folded form, and that is as good as the form that was validated.
    assert evaluate(bank, task, validation()).metrics["loss"] == pytest.approx(result.metrics["loss"], rel=1e-4)
    loaded = Task.load(tmp_path, bank.backbone)
    batch, _ = validation().load(torch.arange(8).numpy())
    with torch.no_grad():
        scored = bank(batch, tasks="t")
        bank.detach()
        assert torch.equal(TaskBank(bank.backbone, [loaded])(batch, tasks="t"), scored)


@pytest.mark.parametrize("name", METHODS)
def test_a_finished_run_gives_back_the_folded_task(tmp_path, name):
    bank, task = new(METHODS[name])
    fit(bank, task, TinySource(), validation(), CHOSEN, tmp_path)
    bank, again = new(METHODS[name])
    fit(bank, again, Fails(0), validation(), CHOSEN, tmp_path, resume=True)
    assert same_bits(task.tensors(), again.tensors())
    assert again.metrics == task.metrics
