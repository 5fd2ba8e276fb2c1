"""Many runs over one backbone: each ends as it would alone."""

import json
import signal

import pytest
import torch
from train_standins import TinyBank, TinySource, lines, new, same_bits, settings, validation

from intarsia.errors import TrainingError
from intarsia.training import Entry, Failed, fit, fit_pack
from intarsia.training.checkpoint import read_checkpoint

RUNS = {
    "a": {"seed": 1},
    "b": {"seed": 2, "epochs": 5, "learning_rate": 0.05},
    "c": {"seed": 1, "batch_size": 8, "accumulate": 2, "patience": 1},
}


class Tasks(TinyBank):
    """A bank of several tiny tasks."""

    def __init__(self, tasks):
        super().__init__(tasks[0])
        self.tasks = {task.name: task for task in tasks}

    def __call__(self, batch, tasks):
        return self.tasks[tasks](batch)

    def loss(self, batch, labels, task):
        return self.tasks[task].loss(self(batch, tasks=task), labels)

    def evict(self, name):
        del self.tasks[name]

    def add(self, task):
        self.tasks[task.name] = task


def members(folder, runs=RUNS, **more):
    entries = []
    for name, own in runs.items():
        _, task = new(seed=own.get("seed", 0))
        task.name = name
        chosen = settings(**own)
        entries.append(
            Entry(task=task, train=TinySource(), validation=validation(), settings=chosen, out=folder / name, **more)
        )
    return Tasks([entry.task for entry in entries]), entries


def test_every_run_of_a_pack_ends_with_the_very_bits_of_the_same_run_alone(tmp_path):
    bank, entries = members(tmp_path / "pack")
    together = fit_pack(bank, entries)
    for entry in entries:
        own, task = new(seed=RUNS[entry.task.name].get("seed", 0))
        alone = fit(own, task, TinySource(), validation(), entry.settings, tmp_path / entry.task.name)
        assert same_bits(task.tensors(), entry.task.tensors())
        assert lines(tmp_path / entry.task.name) == lines(entry.out)
        assert together[entry.task.name].best == alone.best
        assert together[entry.task.name].stopped == alone.stopped


def test_a_run_that_diverges_leaves_and_the_others_end_as_they_would(tmp_path):
    bank, entries = members(
        tmp_path / "pack", {"a": {"seed": 1}, "wild": {"learning_rate": 1e30, "schedule": "constant"}}
    )
    results = fit_pack(bank, entries)
    assert isinstance(results["wild"], Failed)
    assert isinstance(results["wild"].error, TrainingError)
    assert "learning rate 1e+30" in results["wild"].message
    own, task = new(seed=1)
    fit(own, task, TinySource(), validation(), settings(seed=1), tmp_path / "alone")
    assert same_bits(task.tensors(), entries[0].task.tensors())


def test_a_pruned_run_keeps_its_best_weights_and_says_so(tmp_path):
    bank, entries = members(tmp_path / "pack", {"a": {"seed": 1}, "b": {"seed": 2}})
    asked = []

    def prune(name, step, value):
        if value is None:
            return False
        asked.append((name, step, value))
        return name == "b" and step >= 10

    results = fit_pack(bank, entries, prune=prune)
    assert (results["b"].stopped, results["b"].steps) == ("pruned", 10)
    assert (results["a"].stopped, results["a"].steps) == ("finished", 15)
    assert [(name, step) for name, step, _ in asked] == [("a", 5), ("b", 5), ("a", 10), ("b", 10), ("a", 15)]
    found = json.loads((tmp_path / "pack" / "b" / "run.json").read_text())["result"]
    assert found["stopped"] == "pruned"
    assert found["best"] == max(value for name, _, value in asked if name == "b")


def test_a_run_whose_time_is_over_between_two_evaluations_is_evaluated_where_it_stands(tmp_path):
    bank, entries = members(tmp_path, {"a": {"seed": 1}, "b": {"seed": 2}})
    values = {}

    def prune(name, step, value):
        if value is not None:
            values[name, step] = value
        return name == "b" and step >= 7

    results = fit_pack(bank, entries, prune=prune)
    assert (results["b"].stopped, results["b"].steps) == ("pruned", 7)
    assert (results["a"].stopped, results["a"].steps) == ("finished", 15)
    assert sorted(values) == [("a", 5), ("a", 10), ("a", 15), ("b", 5), ("b", 7)]


def test_a_run_whose_time_is_over_before_its_first_step_takes_one(tmp_path):
    """There is nothing to keep of none."""
    bank, entries = members(tmp_path, {"a": {"seed": 1}, "b": {"seed": 2}})
    results = fit_pack(bank, entries, prune=lambda name, _step, _value: name == "a")
    assert (results["a"].stopped, results["a"].steps) == ("pruned", 1)
    assert (results["b"].stopped, results["b"].steps) == ("finished", 15)


def test_ctrl_c_saves_all_and_a_resumed_pack_ends_with_the_same_bits(tmp_path):
    bank, entries = members(tmp_path / "whole")
    fit_pack(bank, entries)
    whole = {entry.task.name: entry.task.tensors() for entry in entries}

    steps = 0

    class Interrupting(TinySource):
        def load(self, key):
            nonlocal steps
            steps += 1
            if steps == 12:
                signal.raise_signal(signal.SIGINT)
            return super().load(key)

    bank, entries = members(tmp_path / "cut")
    first = [Entry(**{**{f: getattr(e, f) for f in Entry.__slots__}, "train": Interrupting()}) for e in entries]
    with pytest.raises(KeyboardInterrupt, match="a at step 4 of 15, b at step 4 of 25"):
        fit_pack(bank, first)
    bank, entries = members(tmp_path / "cut")
    fit_pack(bank, entries, resume=True)
    for entry in entries:
        assert same_bits(whole[entry.task.name], entry.task.tensors())
        assert lines(tmp_path / "whole" / entry.task.name) == lines(entry.out)


class Interrupting(TinySource):
    """Ctrl-C comes while the batch of this step is read."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def load(self, key):
        self.step -= 1
        if self.step == 0:
            signal.raise_signal(signal.SIGINT)
        return super().load(key)


@pytest.mark.parametrize("epochs", [3, 100], ids=["its loss was read", "its loss waits to be read"])
def test_ctrl_c_saves_the_others_beside_a_run_that_has_just_diverged(epochs, tmp_path):
    own = {"epochs": epochs, "checkpoint_every": 1}
    bank, entries = members(tmp_path, {"a": own, "wild": {**own, "learning_rate": 1e30}, "b": own})
    fields = {f: getattr(entries[0], f) for f in Entry.__slots__}
    entries[0] = Entry(**fields | {"train": Interrupting(step=2)})
    said = []
    entries[1].report.say = said.append
    with pytest.raises(KeyboardInterrupt, match=r"stopped: a at step 2 of \d+, b at step 2 of \d+; go on"):
        fit_pack(bank, entries)
    assert [line for line in said if "at step 2 of" in line]
    for name, step in (("a", 2), ("wild", 1), ("b", 2)):
        checkpoint = read_checkpoint(tmp_path / name)
        assert checkpoint.facts["state"]["step"] == step
        assert all(x.isfinite().all() for x in checkpoint.group("task").values()), name


def test_runs_that_have_ended_are_not_trained_again(tmp_path):
    bank, entries = members(tmp_path / "pack")
    first = fit_pack(bank, entries)
    bank, entries = members(tmp_path / "pack")
    again = fit_pack(bank, entries, resume=True, prune=lambda *_: pytest.fail("nothing is trained"))
    assert again == first
    assert all(torch.isfinite(x).all() for entry in entries for x in entry.task.tensors().values())
