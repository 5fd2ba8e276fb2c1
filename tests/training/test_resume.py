"""A run that is killed and resumed ends with the bits of one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_standins import TinySource, lines, new, same_bits, settings, validation

from intarsia.errors import ConfigError, TrainingError
from intarsia.training import SilentReporter, fit
from intarsia.training.checkpoint import FILE, read_checkpoint

HERE = Path(__file__).parent


class Kept(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


class Fails(TinySource):
    """Fails at the n-th batch: stands for a kill at that step."""

    def __init__(self, n: int, rows: int = 40, error: BaseException | None = None) -> None:
        super().__init__(rows)
        self.left, self.error = n, error or RuntimeError("killed")

    def load(self, key):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().load(key)


def interrupted(out: Path, chosen, *, after: int = 11) -> None:
    bank, task = new()
    with pytest.raises(RuntimeError, match="killed"):
        fit(bank, task, Fails(after), validation(), chosen, out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")
def test_sigkill_at_any_moment_changes_no_bit(tmp_path):
    optimizers = ("adamw", "adafactor")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, str(HERE / "kill_driver.py"), str(tmp_path / "killed"), *optimizers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    kills = [int(line) for line in done.stdout.split()]
    assert len(kills) == len(optimizers)
    assert min(kills) >= 3, "too few kills landed within the run"

    for optimizer in optimizers:
        calm, killed = tmp_path / "calm" / optimizer, tmp_path / "killed" / optimizer
        bank, task = new()
        chosen = settings(optimizer=optimizer, epochs=12, accumulate=2, checkpoint_every=7, evaluate_every=9, seed=3)
        result = fit(bank, task, TinySource(90), validation(), chosen, calm)
        assert same_bits(load_file(killed / "task.safetensors"), task.tensors())
        assert lines(killed) == lines(calm)
        told, same = (json.loads((folder / "run.json").read_text())["result"] for folder in (killed, calm))
        assert {**told, "seconds": 0} == {**same, "seconds": 0}
        assert told["best_step"] == result.best_step
        assert not (killed / FILE).exists()


def test_a_stop_at_any_step_changes_no_bit(tmp_path):
    chosen = settings(checkpoint_every=2, evaluate_every=4)
    bank, calm = new()
    fit(bank, calm, TinySource(), validation(), chosen, tmp_path / "calm")
    for after in range(15):
        interrupted(tmp_path / f"{after}", chosen, after=after)
        bank, task = new()
        fit(bank, task, TinySource(), validation(), chosen, tmp_path / f"{after}", resume=True)
        assert same_bits(task.tensors(), calm.tensors()), after
        assert lines(tmp_path / f"{after}") == lines(tmp_path / "calm"), after


def test_the_checkpoint_holds_all_in_one_file_without_pickle(tmp_path):
    interrupted(tmp_path, settings(checkpoint_every=4))
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.facts["state"]["step"] == 10
    assert {name.split("/")[0] for name in checkpoint.tensors} == {"task", "best", "optimizer", "rng"}
    assert checkpoint.group("rng")["cpu"].dtype == torch.uint8
    assert set(checkpoint.group("optimizer")) >= {"bias/exp_avg", "bias/exp_avg_sq", "bias/step"}
    assert not list(tmp_path.glob("*.tmp"))


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    chosen = settings(checkpoint_every=4)
    interrupted(tmp_path / "a", chosen)
    whole = (tmp_path / "a" / FILE).read_bytes()
    (tmp_path / "a" / (FILE + ".tmp")).write_bytes(whole[: len(whole) // 2])
    bank, task = new()
    report = Kept()
    fit(bank, task, TinySource(), validation(), chosen, tmp_path / "a", resume=True, report=report)
    assert report.said == ["resumed from the checkpoint of step 10 of 15"]
    bank, calm = new()
    fit(bank, calm, TinySource(), validation(), chosen, tmp_path / "b")
    assert same_bits(task.tensors(), calm.tensors())
    assert not list((tmp_path / "a").glob("*.tmp"))


def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path):
    interrupted(tmp_path, settings(checkpoint_every=4))
    whole = (tmp_path / FILE).read_bytes()
    for broken in (whole[:-10], whole[:5], b"", b"x" * 100):
        (tmp_path / FILE).write_bytes(broken)
        bank, task = new()
        with pytest.raises(TrainingError, match=r"checkpoint\.safetensors cannot be read"):
            fit(bank, task, TinySource(), validation(), settings(checkpoint_every=4), tmp_path, resume=True)


def test_resume_without_a_checkpoint_starts_from_the_beginning_and_says_so(tmp_path):
    chosen = settings()
    interrupted(tmp_path / "a", chosen, after=3)
    assert lines(tmp_path / "a")
    bank, task = new()
    report = Kept()
    fit(bank, task, TinySource(), validation(), chosen, tmp_path / "a", resume=True, report=report)
    assert "has no checkpoint: starting from the beginning" in report.said[0]
    assert [line["step"] for line in lines(tmp_path / "a") if "loss" in line] == list(range(1, 16))
    fit(*new(), TinySource(), validation(), chosen, tmp_path / "fresh", resume=True)


def test_a_finished_run_is_not_trained_again(tmp_path):
    bank, task = new()
    first = fit(bank, task, TinySource(), validation(), settings(), tmp_path)
    bank, again = new(seed=5)
    report = Kept()
    second = fit(bank, again, Fails(0), validation(), settings(), tmp_path, resume=True, report=report)
    assert first == second
    assert same_bits(task.tensors(), again.tensors())
    assert again.metrics == task.metrics
    assert "holds a finished run (15 steps)" in report.said[0]


@pytest.mark.parametrize("stage", ["unfinished", "finished"])
def test_resuming_with_other_settings_or_data_names_them(tmp_path, stage):
    bank, task = new()
    source = Fails(11) if stage == "unfinished" else TinySource()
    identity = {"data": {"fingerprint": "aaa"}, "method": {"width": 48}}
    try:
        fit(bank, task, source, validation(), settings(), tmp_path, identity=identity)
    except RuntimeError:
        assert stage == "unfinished"
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = {"data": {"fingerprint": "bbb"}, "method": {"width": 48}}
    for changes, wanted, named in [
        ({"seed": 1}, identity, "settings.seed was 0 and is 1"),
        ({"epochs": 4}, identity, "settings.epochs was 3 and is 4"),
        ({}, other, "data.fingerprint was 'aaa' and is 'bbb'"),
        ({}, {"data": {"fingerprint": "aaa"}}, "method.width was 48 and is None"),
    ]:
        if stage == "finished" and named.startswith("method"):
            continue  # run.json holds more than the identity: what is not asked for is not compared.
        bank, task = new()
        with pytest.raises(ConfigError, match=named):
            fit(bank, task, TinySource(), validation(), settings(**changes), tmp_path, resume=True, identity=wanted)
    with pytest.raises(ConfigError, match="batches_per_epoch was 5 and is 6"):
        fit(*new(), TinySource(48), validation(), settings(), tmp_path, resume=True, identity=identity)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fit(*new(), TinySource(), validation(), settings(checkpoint_every=1), tmp_path, resume=True, identity=identity)


@pytest.mark.parametrize("trace", ["run.json", "metrics.jsonl", "checkpoint.safetensors", "task.json"])
def test_a_folder_that_holds_a_run_is_never_overwritten(tmp_path, trace):
    (tmp_path / trace).write_text("precious")
    with pytest.raises(
        ConfigError, match=f"already holds a run .{trace}.; go on with --resume, or choose another --out"
    ):
        fit(*new(), TinySource(), validation(), settings(), tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_a_folder_with_other_files_is_fine(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    fit(*new(), TinySource(), validation(), settings(epochs=1), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_damaged_run_json_is_one_clear_line(tmp_path):
    interrupted(tmp_path, settings())
    for text in ("{", "[]"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(TrainingError, match=r"run\.json .*choose another --out"):
            fit(*new(), TinySource(), validation(), settings(), tmp_path, resume=True)


def test_seconds_and_resumes_are_summed_in_the_record(tmp_path):
    interrupted(tmp_path, settings(checkpoint_every=4))
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None
    result = fit(*new(), TinySource(), validation(), settings(checkpoint_every=4), tmp_path, resume=True)
    assert result.seconds >= checkpoint.facts["state"]["seconds"]
    assert result.tokens == 3 * 40 * 5
    assert len(json.loads((tmp_path / "run.json").read_text())["resumed"]) == 1


class Asks(TinySource):
    """Somebody else wants to go on with the run while it takes its 12th step."""

    def __init__(self, out: Path, chosen) -> None:
        super().__init__(40)
        self.out, self.chosen, self.left, self.refused = out, chosen, 12, ""

    def load(self, key):
        self.left -= 1
        if self.left == 0:
            with pytest.raises(ConfigError) as error:
                fit(*new(), TinySource(40), validation(), self.chosen, self.out, resume=True)
            self.refused = str(error.value)
        return super().load(key)


def test_a_run_that_is_at_work_is_not_gone_on_with(tmp_path):
    # Both would write the same checkpoint, and cut each other's lines off.
    chosen = settings(epochs=3, checkpoint_every=4)
    source = Asks(tmp_path, chosen)
    fit(*new(), source, validation(), chosen, tmp_path)
    assert source.refused == f"another run is at work in {tmp_path}; wait for it, or choose another --out"
    assert fit(*new(), TinySource(40), validation(), chosen, tmp_path, resume=True).stopped == "finished"
