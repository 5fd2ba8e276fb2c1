"""Training with the real task, bank and backbone, on a tiny random BERT."""

import pytest
import torch
from train_standins import TinySource, lines, same_bits, settings, validation

import tiny
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError
from intarsia.heads import Head
from intarsia.methods import BottleneckAdapter, FullFineTuning
from intarsia.task import Task
from intarsia.training import fit

METHODS = {"adapter": BottleneckAdapter(width=4, dropout=0.1), "full": FullFineTuning()}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


class Stops(TinySource):
    """Fails at the n-th batch."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def load(self, key):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("killed")
        return super().load(key)


def setting(method: str, device: str, dtype: torch.dtype = torch.float32) -> tuple[TaskBank, Task]:
    backbone = Backbone.wrap(tiny.build("bert").to(device=device, dtype=dtype))
    task = Task.new("t", backbone, METHODS[method], Head(labels=("no", "yes")))
    return TaskBank(backbone, [task]), task


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path, method, device):
    chosen = settings(checkpoint_every=3, learning_rate=1e-3)
    bank, task = setting(method, device)
    with pytest.raises(RuntimeError, match="killed"):
        fit(bank, task, Stops(8), validation(), chosen, tmp_path / "a")
    bank, resumed = setting(method, device)
    fit(bank, resumed, TinySource(), validation(), chosen, tmp_path / "a", resume=True)
    bank, calm = setting(method, device)
    fit(bank, calm, TinySource(), validation(), chosen, tmp_path / "b")
    # A GPU may add in another order each time; there the promise is closeness.
    tolerance = 0.0 if device == "cpu" else 1e-4
    torch.testing.assert_close(resumed.tensors(), calm.tensors(), rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance)
    # The folder holds the very weights that the task now has; and a finished run gives them back.
    assert same_bits(Task.load(tmp_path / "a", bank.backbone).tensors(), resumed.tensors())
    bank, again = setting(method, device)
    fit(bank, again, Stops(0), validation(), chosen, tmp_path / "a", resume=True)
    assert same_bits(again.tensors(), resumed.tensors())


@pytest.mark.parametrize("device", DEVICES)
def test_a_bfloat16_backbone_trains_float32_tensors(tmp_path, device):
    bank, task = setting("adapter", device, torch.bfloat16)
    before = {name: x.clone() for name, x in task.tensors().items()}
    fit(bank, task, TinySource(), validation(), settings(learning_rate=1e-3), tmp_path)
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in task.tensors().values())
    assert not same_bits(before, task.tensors())


def test_the_backbone_keeps_its_bits(tmp_path):
    bank, task = setting("full", "cpu")
    before = {name: x.clone() for name, x in bank.backbone.model.state_dict().items()}
    fit(bank, task, TinySource(), None, settings(learning_rate=1e-3), tmp_path)
    assert same_bits(before, bank.backbone.model.state_dict())
    assert not bank.backbone.model.training


def test_a_task_without_a_head_cannot_be_trained_here(tmp_path):
    backbone = Backbone.wrap(tiny.build("bert"))
    task = Task.new("t", backbone, METHODS["adapter"])
    with pytest.raises(ConfigError, match="has no head to train"):
        fit(TaskBank(backbone, [task]), task, TinySource(), None, settings(), tmp_path)
