"""NaN, a full disk, Ctrl-C: one clear line, and the last good checkpoint intact."""

import errno
import os
import shutil
import signal

import pytest
import torch
from train_standins import TinySource, lines, new, same_bits, settings, validation

from intarsia.errors import ConfigError, DataError, TrainingError
from intarsia.training import checkpoint as checkpoint_module
from intarsia.training import fit
from intarsia.training.checkpoint import FILE, read_checkpoint


class Poisoned(TinySource):
    """From the n-th batch on, `spoil` is called before the batch is given out."""

    def __init__(self, n: int, spoil) -> None:
        super().__init__()
        self.left, self.spoil = n, spoil

    def load(self, key):
        self.left -= 1
        if self.left < 0:
            self.spoil()
        return super().load(key)


def nan_loss(task):
    def spoil():
        task.loss = lambda logits, labels: logits.sum() * float("nan")

    return spoil


def nan_gradient(task):
    def spoil():
        # The loss is finite; the gradient of sqrt at 0 is not.
        task.loss = lambda logits, labels: (logits * 0).abs().sum().sqrt()

    return spoil


@pytest.mark.parametrize(("spoil", "what"), [(nan_loss, "the loss is nan"), (nan_gradient, "the gradient's norm is")])
def test_a_step_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(tmp_path, spoil, what):
    bank, task = new()
    chosen = settings(epochs=40, checkpoint_every=6, schedule="constant", warmup=0.0)
    with pytest.raises(TrainingError, match=f"^{what}.* at step 33 of 200, learning rate 0.02; .*lower --lr") as caught:
        fit(bank, task, Poisoned(32, spoil(task)), None, chosen, tmp_path)
    assert "the checkpoint of step 30 is intact" in str(caught.value)
    assert "\n" not in str(caught.value)
    kept = read_checkpoint(tmp_path)
    assert kept is not None
    assert kept.facts["state"]["step"] == 30
    assert all(x.isfinite().all() for x in kept.tensors.values())
    # And it is good: the run goes on from it when the cause is gone.
    bank, task = new()
    fit(bank, task, TinySource(), None, chosen, tmp_path, resume=True)
    bank, calm = new()
    fit(bank, calm, TinySource(), None, chosen, tmp_path / "calm")
    assert same_bits(task.tensors(), calm.tensors())


def test_a_resumed_run_that_meets_it_again_names_the_checkpoint_that_it_came_from(tmp_path):
    for batches, resume in ((6, False), (1, True)):
        bank, task = new()
        with pytest.raises(TrainingError, match=r"at step 7 of 15, .* the checkpoint of step 5 is intact"):
            fit(bank, task, Poisoned(batches, nan_loss(task)), validation(), settings(), tmp_path, resume=resume)


@pytest.mark.parametrize("every", [1, 4])
def test_a_nan_is_never_put_into_a_checkpoint(tmp_path, every):
    bank, task = new()
    with pytest.raises(TrainingError, match="at step 4 of 15"):
        fit(bank, task, Poisoned(3, nan_loss(task)), validation(), settings(checkpoint_every=every), tmp_path)
    kept = read_checkpoint(tmp_path)
    assert (kept.facts["state"]["step"] if kept else None) == (3 if every == 1 else None)


def test_a_nan_at_the_first_step_gets_other_advice(tmp_path):
    bank, task = new()
    with pytest.raises(TrainingError, match=r"no step had been taken.*--dtype float32"):
        fit(bank, task, Poisoned(0, nan_loss(task)), validation(), settings(), tmp_path)


def test_a_nan_in_validation_is_no_best(tmp_path):
    class Broken(TinySource):
        def load(self, key):
            batch, labels = super().load(key)
            return batch | {"attention_mask": torch.zeros_like(batch["attention_mask"])}, labels  # 0 / 0

    with pytest.raises(TrainingError, match="the validation loss is nan at step 5 of 15"):
        fit(*new(), TinySource(), Broken(), settings(), tmp_path)


def test_a_full_disk_stops_the_run_and_spares_the_checkpoint(tmp_path, monkeypatch):
    chosen = settings(checkpoint_every=4)
    fsync = os.fsync
    state = {"writes": 0}

    def full(handle):
        # The file's bytes are there in part when the disk runs full.
        if os.path.exists(tmp_path / (FILE + ".tmp")):
            state["writes"] += 1
            if state["writes"] > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(checkpoint_module.os, "fsync", full)
    with pytest.raises(
        TrainingError, match=r"cannot write the checkpoint to .*: the disk is full; the last checkpoint is"
    ) as e:
        fit(*new(), TinySource(), validation(), chosen, tmp_path)
    assert str(e.value).endswith("free some space, then go on with --resume")
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.tmp"))
    kept = read_checkpoint(tmp_path)
    assert kept is not None
    assert kept.facts["state"]["step"] == 5
    bank, task = new()
    fit(bank, task, TinySource(), validation(), chosen, tmp_path, resume=True)
    bank, calm = new()
    fit(bank, calm, TinySource(), validation(), chosen, tmp_path / "calm")
    assert same_bits(task.tensors(), calm.tensors())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_folder_that_is_gone_is_said_to_be_gone(tmp_path):
    class Removes(TinySource):
        def load(self, key):
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            return super().load(key)

    with pytest.raises(TrainingError, match=r"No such file or directory; .*; bring the folder back, then go on"):
        fit(*new(), Removes(), validation(), settings(), tmp_path / "out")


def test_a_limit_on_the_size_of_files_is_said_to_be_one(tmp_path, monkeypatch):
    def too_large(handle):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(checkpoint_module.os, "fsync", too_large)
    with pytest.raises(
        TrainingError, match=r"File too large; .*; raise the limit on the size of files \(ulimit -f\), then"
    ):
        fit(*new(), TinySource(), validation(), settings(), tmp_path / "out")


def test_a_full_disk_under_the_log_is_as_clear(tmp_path):
    (tmp_path / "out").mkdir()

    class Links(TinySource):
        def load(self, key):
            path = tmp_path / "out" / "metrics.jsonl"
            if not path.exists():
                path.symlink_to("/dev/full")
            return super().load(key)

    with pytest.raises(
        TrainingError, match=r"cannot write metrics\.jsonl .*the disk is full; there is no checkpoint yet"
    ):
        fit(*new(), Links(), validation(), settings(), tmp_path / "out")


def test_a_full_disk_at_the_very_end_loses_nothing(tmp_path, monkeypatch):
    bank, task = new()

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    task.save = full
    with pytest.raises(
        TrainingError, match=r"cannot write the task to .*: the disk is full; the last checkpoint is intact"
    ):
        fit(bank, task, TinySource(), validation(), settings(), tmp_path)
    bank, again = new()
    result = fit(bank, again, TinySource(), validation(), settings(), tmp_path, resume=True)
    assert result.steps == 15
    assert same_bits(again.tensors(), task.tensors())


def test_ctrl_c_writes_a_checkpoint_and_resuming_changes_no_bit(tmp_path):
    """After step 7, which no setting asks a checkpoint for."""
    source = Poisoned(6, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 7 of 15; go on with --resume"):
        fit(*new(), source, validation(), settings(), tmp_path / "a")
    assert signal.getsignal(signal.SIGINT) is before
    kept = read_checkpoint(tmp_path / "a")
    assert kept is not None
    assert kept.facts["state"]["step"] == 7
    check_resumed(tmp_path)


@pytest.mark.parametrize("at", [5, 15])
def test_ctrl_c_within_an_evaluation_does_it_again_when_resumed(tmp_path, at):
    calls = {"left": 0 if at == 5 else 6}  # Three batches each.

    class Interrupting(TinySource):
        def load(self, key):
            calls["left"] -= 1
            if calls["left"] == -1:
                os.kill(os.getpid(), signal.SIGINT)
            return super().load(key)

    source = Interrupting(24, seed=1, shuffle=False)
    with pytest.raises(KeyboardInterrupt, match=f"stopped at step {at} of 15"):
        fit(*new(), TinySource(), source, settings(), tmp_path / "a")
    check_resumed(tmp_path)


def test_a_second_ctrl_c_ends_at_once_and_the_last_checkpoint_is_good(tmp_path):
    source = Poisoned(6, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        fit(*new(), source, validation(), settings(), tmp_path / "a")
    kept = read_checkpoint(tmp_path / "a")
    assert kept is not None
    assert kept.facts["state"]["step"] == 5
    check_resumed(tmp_path)


def check_resumed(tmp_path):
    bank, task = new()
    fit(bank, task, TinySource(), validation(), settings(), tmp_path / "a", resume=True)
    bank, calm = new()
    fit(bank, calm, TinySource(), validation(), settings(), tmp_path / "b")
    assert same_bits(task.tensors(), calm.tensors())
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_out_must_be_a_folder_that_can_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"cannot write to .*; choose another --out"):
            fit(*new(), TinySource(), validation(), settings(), out)
    assert (tmp_path / "file").read_text() == "mine"


def test_rows_without_labels_cannot_be_trained_on(tmp_path):
    class Unlabelled(TinySource):
        def load(self, key):
            return super().load(key)[0], None

    with pytest.raises(DataError, match="training needs labels"):
        fit(*new(), Unlabelled(), None, settings(), tmp_path)
