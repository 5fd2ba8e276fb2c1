"""One run's trouble concerns no other of its pack; a bug concerns all."""

import errno
import os

import pytest
import torch
from test_pack import RUNS, members
from train_standins import TinySource, new, same_bits, settings, validation

from intarsia.errors import DiskError, TrainingError
from intarsia.training import Entry, Failed, fit, fit_pack


class Failing(TinySource):
    """The n-th batch raises."""

    def __init__(self, n, error):
        super().__init__()
        self.left, self.error = n, error

    def load(self, key):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return super().load(key)


class Logging:
    """A logger whose disk or network fails at this step."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def log(self, step, values):
        if step >= self.step:
            raise self.error

    def close(self): ...


def changed(entry, **fields):
    return Entry(**{f: getattr(entry, f) for f in Entry.__slots__} | fields)


def spoiled(folder, **fields):
    """How run b of three ended, the others having ended with the bits that they have alone."""
    bank, entries = members(folder / "pack")
    entries[1] = changed(entries[1], **fields)
    results = fit_pack(bank, entries)
    for entry in (entries[0], entries[2]):
        own, task = new(seed=RUNS[entry.task.name]["seed"])
        fit(own, task, TinySource(), validation(), entry.settings, folder / entry.task.name)
        assert same_bits(task.tensors(), entry.task.tensors())
        assert not isinstance(results[entry.task.name], Failed)
    return results["b"]


def too_much():
    """What torch raises on a CPU."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


def too_much_on_a_gpu():
    """And what it raises there."""
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("error", [too_much, MemoryError, too_much_on_a_gpu], ids=lambda e: e.__name__)
def test_a_run_for_which_memory_is_short_leaves_and_the_others_end_as_they_would(error, tmp_path):
    result = spoiled(tmp_path, train=Failing(8, error()))
    assert isinstance(result, Failed)
    assert isinstance(result.error, TrainingError)
    wanted = (
        "out of memory after step 7 of 25; the checkpoint of step 5 is intact; free some memory and go on with --resume"
    )
    assert result.message.startswith(wanted)
    assert result.error.__context__ is None, "it holds the frames, and so the tensors, of the step"


def test_memory_that_is_short_while_a_run_is_scored_is_its_own_too(tmp_path):
    source = Failing(1, too_much())
    result = spoiled(tmp_path, validation=source)
    assert isinstance(result, Failed)
    assert "out of memory after step 5 of 25; there was no checkpoint yet" in result.message


def test_memory_that_is_short_is_one_line_of_a_lone_run_too(tmp_path):
    with pytest.raises(TrainingError, match="out of memory after step 2 of 15"):
        fit(*new(), Failing(3, too_much()), validation(), settings(), tmp_path)


def test_a_bug_ends_the_pack(tmp_path):
    for number, bug in enumerate((RuntimeError("shapes do not match"), KeyError("x"), OSError("of nobody's folder"))):
        bank, entries = members(tmp_path / str(number))
        entries[1] = changed(entries[1], train=Failing(8, bug))
        with pytest.raises(type(bug)):
            fit_pack(bank, entries)


@pytest.mark.parametrize("step", [1, 5, 25], ids=["at the first line", "at an evaluation", "at the last line"])
def test_a_logger_that_cannot_write_ends_its_own_run_alone(step, tmp_path):
    result = spoiled(tmp_path, logger=Logging(step, ConnectionError("no route to host")))
    assert isinstance(result, Failed)
    assert isinstance(result.error, DiskError)
    assert "the logger of " in result.message
    assert "no route to host" in result.message


def test_a_folder_that_cannot_be_opened_ends_its_own_run_alone(tmp_path, monkeypatch):
    """As where one may write and not read, or where too many files are open."""
    really = os.open

    def refuse(path, *more, **named):
        if os.fspath(path).endswith("pack/b"):
            raise OSError(errno.EMFILE, "Too many open files")
        return really(path, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    result = spoiled(tmp_path)
    assert isinstance(result, Failed)
    assert "cannot write a run to" in result.message


def test_a_folder_that_goes_away_ends_its_own_run_alone(tmp_path):
    class Removing(TinySource):
        left = 8

        def load(self, key):
            self.left -= 1
            if self.left == 0:
                (tmp_path / "pack" / "b").rename(tmp_path / "elsewhere")
            return super().load(key)

    result = spoiled(tmp_path, train=Removing())
    assert isinstance(result, Failed)
    assert isinstance(result.error, DiskError)
    assert "bring the folder back" in result.message
