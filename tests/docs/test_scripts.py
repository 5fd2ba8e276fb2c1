"""The scripts that README names, with a stand-in for the program: what they ask of it, and in which order."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"""#!/usr/bin/env bash
[[ "$*" == *"-m pip"* ]] || exec {sys.executable} "$@"
"""
INTARSIA = """#!/usr/bin/env bash
echo "$*" >>asked
[[ "$1" == train ]] || exit 0
out="${@: -1}"
mkdir -p "$out" && touch "$out/run.json"
[[ "$*" == *--resume* ]] && touch "$out/task.json" && exit 0
[[ -f stopping && "$out" == *tweets ]] && exit 130
touch "$out/task.json"
"""


@pytest.fixture
def root(tmp_path):
    """A checkout with the scripts and an environment that is made already."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name, text in (("python", PYTHON), ("intarsia", INTARSIA)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return tmp_path


def test_serve_six_goes_on_with_a_training_that_was_stopped(root):
    def start() -> tuple[int, list[str]]:
        (root / "asked").unlink(missing_ok=True)
        status = subprocess.run(
            ["bash", "scripts/serve-six", "--steps", "7", "--port", "8080"], cwd=root, capture_output=True, timeout=60
        ).returncode
        return status, (root / "asked").read_text().splitlines()

    (root / "stopping").touch()
    status, asked = start()
    assert status == 130
    assert [line.split()[4] for line in asked] == ["embedded:movies", "embedded:amazon", "embedded:tweets"]
    (root / "stopping").unlink()
    status, asked = start()
    assert status == 0
    assert asked[0] == f"train --resume --out {root}/runs/six/tweets"
    assert [line.split()[4] for line in asked[1:4]] == ["embedded:nyt", "embedded:sms-spam", "embedded:questions"]
    assert asked[4:] == [f"serve --backbone embedded:minilm --tasks {root}/runs/six --port 8080"]
    assert start() == (0, asked[4:])
