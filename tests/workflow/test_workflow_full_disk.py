"""A disk that runs full under runs, packs and comparisons: what is said, what is kept, and how it goes on."""

import errno
import os
from pathlib import Path

import pytest

import intarsia
from intarsia.backbone import Backbone
from intarsia.errors import DiskError
from intarsia.task import Task
from intarsia.training import Failed, loggers
from intarsia.workflow.compare import compare
from intarsia.workflow.compare.settings import from_mapping
from workflow.compare_standins import FakePack, ledger_lines
from workflow.tiny_run import train_arguments

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def full(monkeypatch):
    """full(part): from now on no file can be written whose path holds `part`; full(None): there is room again."""
    fsync, short = os.fsync, []

    def check(handle):
        if short and short[0] in os.readlink(f"/proc/self/fd/{handle}"):
            raise FULL
        fsync(handle)

    def fill(part: str | None) -> None:
        short[:] = [] if part is None else [part]

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", check)
    return fill


def given(backbone, files, tmp_path, monkeypatch) -> dict:
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))
    shared = {"backbone": str(backbone), "device": "cpu", "dtype": "float32", "epochs": 1}
    return shared | {name: str(path) for name, path in files.items()}


def test_a_picture_that_cannot_be_written_leaves_nothing_half_written(backbone, files, tmp_path, monkeypatch, full):
    shared = given(backbone, files, tmp_path, monkeypatch)
    full("curve.png")
    with pytest.raises(DiskError, match=r"cannot write curve\.png .*disk is full; the task is saved; .*--resume"):
        intarsia.train(**shared, method="head", out=tmp_path / "out")
    assert not [*(tmp_path / "out").glob("*.tmp"), *(tmp_path / "out").glob("curve*")]


def test_a_picture_that_cannot_be_written_does_not_hide_how_the_others_ended(
    backbone, files, tmp_path, monkeypatch, full
):
    shared = given(backbone, files, tmp_path, monkeypatch)
    full("a/curve.png")
    runs = [{"method": "head", "out": tmp_path / name} for name in "ab"]
    failed, ended = intarsia.train_pack(runs, **shared)
    assert isinstance(failed, Failed)
    assert "curve.png" in failed.message
    assert not isinstance(ended, Failed)
    full(None)
    assert not any(isinstance(one, Failed) for one in intarsia.train_pack(runs, **shared, resume=True))


def test_test_scores_that_cannot_be_written_are_scored_again_when_resumed(cli, backbone, files, tmp_path, monkeypatch):
    save, out = Task.save, tmp_path / "out"

    def short(self, folder):
        if any(name.startswith("test_") for name in self.metrics):
            raise FULL
        save(self, folder)

    monkeypatch.setattr(Task, "save", short)
    found = cli(*train_arguments(backbone, files), "--epochs", 1, "--test", files["test"], "--out", out)
    assert found.status == 2
    assert f"cannot write the test scores to {out}: the disk is full; the task is saved" in found.err.splitlines()[-1]
    monkeypatch.setattr(Task, "save", save)
    again = cli("train", "--out", out, "--resume")
    assert again.status == 0, again.err
    assert "test accuracy" in again.out
    assert "test_accuracy" in (out / "task.json").read_text()


@pytest.mark.parametrize("stage", ["probe", "search-1-lora", "final-1-lora"])
def test_a_full_disk_stops_a_comparison_and_is_no_methods_fault(backbone, files, tmp_path, monkeypatch, stage):
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))
    loaded = Backbone.load(str(backbone), dtype="float32", device="cpu")

    def settings(out):
        return from_mapping(
            {
                "backbone": str(backbone),
                "data": {name: str(path) for name, path in files.items()},
                "methods": {"lora": {"sizes": [2]}, "adapter": {"sizes": [2]}},
                "seeds": 2,
                "device": "cpu",
                "dtype": "float32",
                "out": str(tmp_path / out),
            }
        )

    def score(run):
        return (0.9 if run.method["name"] == "lora" else 0.8) - 0.001 * run.train.seed

    pack = FakePack(score)

    def short(runs, **more):
        wanting = [run for run in runs if run.out.name.startswith(stage)]
        ended = iter(pack([run for run in runs if run not in wanting], **more))
        return [Failed(name=run.name, error=DiskError("full")) if run in wanting else next(ended) for run in runs]

    with pytest.raises(DiskError, match="full"):
        compare(settings("short"), backbone=loaded, packs=short)
    events = {line["event"] for line in ledger_lines(tmp_path / "short")}
    assert not events & {"failed", "left out", "choice"}
    assert not (tmp_path / "short/probe").exists()
    found = compare(settings("short"), backbone=loaded, packs=pack, resume=True)
    whole = compare(settings("whole"), backbone=loaded, packs=FakePack(score))
    assert (found.best.candidate, found.best.validation) == (whole.best.candidate, whole.best.validation)
    assert set(pack.finished) - {"probe"} == {
        line["run"] for line in ledger_lines(tmp_path / "whole") if line["event"] == "run"
    }


@pytest.mark.parametrize("file", ["ledger.jsonl", "report.md", "best"])
def test_a_full_disk_under_a_comparisons_own_files_is_one_clear_line(
    backbone, files, tmp_path, monkeypatch, file, full
):
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))
    loaded = Backbone.load(str(backbone), dtype="float32", device="cpu")
    settings = from_mapping(
        {
            "backbone": str(backbone),
            "data": {name: str(path) for name, path in files.items()},
            "methods": {"lora": {"sizes": [2], "learning_rates": [1e-3]}, "head": {"learning_rates": [1e-3]}},
            "seeds": 1,
            "device": "cpu",
            "dtype": "float32",
            "out": str(tmp_path / "out"),
        }
    )
    full(f"out/{file}")
    with pytest.raises(DiskError, match="the disk is full; what has ended is kept; free some space, then go on with"):
        compare(settings, backbone=loaded, packs=FakePack(lambda run: 0.9))
    full(None)
    resume = (tmp_path / "out/ledger.jsonl").exists()
    assert compare(settings, backbone=loaded, packs=FakePack(lambda run: 0.9), resume=resume).best.family
    assert not list((tmp_path / "out").rglob("*.tmp"))


class FullLogger:
    """Has no room for its first lines, or for its last."""

    def __init__(self, at: str, out: Path, _config: dict) -> None:
        self.at, self.out = at, out
        self.check("begin")

    def check(self, at: str) -> None:
        if self.out.name == "a" and at == self.at:
            raise FULL

    def log(self, step, values): ...

    def close(self) -> None:
        self.check("end")


@pytest.mark.parametrize("at", ["begin", "end"])
def test_a_logger_without_room_is_its_own_runs_trouble(at, backbone, files, tmp_path, monkeypatch):
    shared = given(backbone, files, tmp_path, monkeypatch) | {"log": "tensorboard"}
    monkeypatch.setitem(loggers._BY_NAME, "tensorboard", lambda out, config: FullLogger(at, out, config))
    runs = [{"method": "head", "out": tmp_path / name} for name in "ab"]
    failed, trained = intarsia.train_pack(runs, **shared)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, DiskError)
    assert "cannot write: No space left on device" in failed.message
    assert trained.metrics["validation"]
    assert (tmp_path / "a" / "task.json").exists() == (at == "end")
    with pytest.raises(DiskError, match="the logger of"):
        intarsia.train(**shared, method="head", out=tmp_path / "alone" / "a")
