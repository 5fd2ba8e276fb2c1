"""What only a real process shows: start-up time, imports, Ctrl-C, kill and resume, pipes."""

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from intarsia import __version__
from intarsia.cli.output import print_table
from workflow.tiny_run import sentences, train_arguments, write_csv


def run(*argv: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "intarsia.cli", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture
def environment(tmp_path):
    return {**os.environ, "INTARSIA_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def test_help_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "intarsia.cli", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    heavy = {"torch", "transformers", "pydantic", "datasets", "numpy", "rich", "yaml", "matplotlib", "pandas"}
    assert not heavy & imported
    assert all(name in done.stdout for name in ("train", "evaluate", "predict", "inspect", "doctor"))


def test_bare_command_prints_help_and_version_the_version():
    assert "Usage: intarsia" in run().stdout
    assert run("--version").stdout == f"intarsia {__version__}\n"
    command = [sys.executable, "-m", "intarsia", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"intarsia {__version__}\n"


def test_usage_errors_are_one_line(cli):
    done = run("trian")
    found = [(done.returncode, done.stdout, done.stderr)]
    others = ("train", "--epoch", 3), ("train", "--epochs", "many"), ("evaluate",), ("predict", "x", "y")
    for status, out, err in (*found, *(cli(*argv) for argv in others)):
        assert (status, out) == (2, "")
        assert err.startswith("intarsia: ")
        assert err.count("\n") == 1


def test_a_wrong_setting_in_a_real_process_is_one_line(backbone, files, environment, tmp_path):
    done = run(*train_arguments(backbone, files), "--lr", "nan", "--out", tmp_path / "out", env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "train.learning_rate" in done.stderr


def test_a_narrow_terminal_cuts_nothing_off(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "30")
    print_table(
        ["run", "validation accuracy", "task"], [["first", "accuracy 0.8333", "/a/folder/deeper/than/the/table/is"]]
    )
    printed = sys.stdout.getvalue()
    assert "…" not in printed
    assert "0.8333" in printed
    assert all(part in "".join(line[-11:].strip() for line in printed.splitlines()) for part in ("folde", "table"))


def test_an_encoding_without_a_character_loses_nothing_and_a_reader_that_leaves_is_no_error(
    trained, environment, tmp_path
):
    rows = [("café ↓ 😀", "pos"), *sentences(31) * 32]  # more than a pipe holds
    data = write_csv(tmp_path / "rows.csv", rows)
    command = f"{sys.executable} -m intarsia.cli predict {trained} --data {data} | head -n 1; exit ${{PIPESTATUS[0]}}"
    environment["PYTHONIOENCODING"] = "ascii"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 141, done.stderr
    answer = json.loads(done.stdout)
    assert answer["text"] == ["café ↓ 😀"]
    assert answer["label"] in ("neg", "pos")
    # torchao, where it is installed, writes lines of its own while transformers imports it.
    said = [word for word in ("intarsia:", "Traceback", "BrokenPipe", "Broken pipe") if word in done.stderr]
    assert not said, done.stderr


def test_a_stopped_run_resumes_to_the_same_bits(backbone, files, environment, tmp_path, cli):
    """Ctrl-C, then a kill while it is gone on with; what was not disturbed, and the end, are computed in this process."""
    arguments = [*train_arguments(backbone, files), "--epochs", "24", "--set", "train.checkpoint_every=3", "--out"]
    whole, out = tmp_path / "whole", tmp_path / "stopped run"
    again, resumed = ["train", "--out", str(out), "--resume"], "resumed from the checkpoint of step"
    for number, argv in ((signal.SIGINT, [*arguments, str(out)]), (signal.SIGKILL, again)):
        before, process = kept(out), subprocess.Popen(
            [sys.executable, "-m", "intarsia.cli", *argv],
            env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c,
        )  # fmt: skip
        while process.poll() is None and kept(out) == before:
            time.sleep(0.005)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        if number == signal.SIGINT:
            assert process.returncode == 130, err
            where = shlex.quote(str(out))
            assert err.splitlines()[-1] == f"intarsia: stopped; go on with: intarsia train --out {where} --resume"
        else:
            assert process.returncode == -number, err
            assert resumed in err
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as the environment has it in the processes
        done = cli(*again)
        assert done.status == 0, done.err
        assert resumed in done.err
        assert cli(*arguments, whole).status == 0
    finally:
        torch.set_num_threads(threads)
    assert (out / "task.safetensors").read_bytes() == (whole / "task.safetensors").read_bytes()


def kept(out):
    """Which checkpoint lies in the folder: each is a file of its own."""
    with contextlib.suppress(FileNotFoundError):
        return (out / "checkpoint.safetensors").stat().st_mtime_ns


def hears_ctrl_c():
    """Whoever starts these tests in the background has their processes ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


START = "import signal, sys; from intarsia.cli.stopping import *; end_cleanly_in_imports(); "
STOPPED = {
    "in an import that would swallow it": ("import swallows; print('went on')", 130, "intarsia: interrupted\n"),
    "in an exec, which Python remembers": (
        "\ntry: exec('signal.raise_signal(2)')\nexcept KeyboardInterrupt: end_at_once(130)",
        130,
        "",
    ),
    "after the last words": ("end_at_once(0); signal.raise_signal(2); print('went on')", -signal.SIGINT, ""),
}


@pytest.mark.parametrize(("code", "status", "said"), STOPPED.values(), ids=STOPPED)
def test_ctrl_c_before_and_after_a_command_is_at_work(tmp_path, code, status, said):
    swallows = "import signal\ntry:\n    signal.raise_signal(2)\nexcept BaseException:\n    pass\n"
    (tmp_path / "swallows.py").write_text(swallows)
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(tmp_path)!r}); {START}{code}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, preexec_fn=hears_ctrl_c)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)
