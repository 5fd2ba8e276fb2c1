"""What the pages print is what the program takes: every command is read as it stands, every run file resolves."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from intarsia.cli.app import app
from intarsia.workflow.compare import settings as comparing
from intarsia.workflow.settings import resolve_pack

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))))
COMMANDS = typer.main.get_command(app).commands


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text(page), re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def printed(page: str) -> list[str]:
    """The commands of its blocks, and those in a sentence that have more than a name."""
    prose = re.sub(r"^```.*?^```$", "", text(page), flags=re.DOTALL | re.MULTILINE)
    shown = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    return [
        *(line for line in shown if line.startswith("intarsia ")),
        *(found for found in re.findall(r"`(intarsia \w+ [^`]+)`", prose)),
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_the_program_takes(page):
    """Names, options and what they need; nothing is run."""
    for line in printed(page):
        _, name, *given = shlex.split(line, comments=True)
        try:
            COMMANDS[name].make_context(name, given)
        except Exception as error:
            raise AssertionError(f"{page}: {line}") from error


def test_commands_were_found():
    assert len(printed("README.md")) > 10
    assert all(len(printed(f"docs/{page}.md")) > 1 for page in ("compare", "serving"))


def test_the_run_file_with_several_runs_resolves(tmp_path):
    (file := tmp_path / "sweep.yaml").write_text(blocks("docs/packs.md", "yaml")[0])
    runs = resolve_pack(file, {})
    assert [(run.name, run.method["name"], run.data.data) for run in runs] == [
        ("small", "adapter", "embedded:questions"),
        ("lora", "lora", "embedded:questions"),
        ("mood", "prefix", "embedded:movies"),
    ]


def test_the_comparisons_file_resolves(tmp_path):
    (file := tmp_path / "compare.yaml").write_text(blocks("docs/compare.md", "yaml")[0])
    found = comparing.resolve(file, {})
    assert list(found.methods) == ["adapter", "prompt", "lora", "full"]
    assert found.budget == 2 * 3600


@pytest.mark.parametrize("page", PAGES)
def test_every_local_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", text(page))
    assert [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()] == []
