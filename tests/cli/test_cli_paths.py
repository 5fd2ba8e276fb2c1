"""Paths as people write them: `~` is the home folder, and an empty path is a mistake."""

import json
import os

import pytest

from cli.refusal import refused
from intarsia.cli.output import written_whole
from intarsia.errors import ConfigError
from intarsia.workflow.compare import settings as comparing
from intarsia.workflow.settings import resolve, resolve_pack
from workflow.tiny_run import train_arguments


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home folder, and a current folder beside it."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_every_option_for_a_path_knows_the_home_folder(cli, backbone, files, home, tmp_path):
    (home / "bert").symlink_to(backbone)
    (home / "test.csv").write_bytes(files["test"].read_bytes())
    argv = train_arguments("~/bert", {**files, "validation": "~/test.csv"})
    assert cli(*argv, "--max-steps", 1, "--out", "~/runs/mood").status == 0
    assert cli("evaluate", "~/runs/mood", "--data", "~/test.csv").status == 0
    assert cli("predict", "~/runs/mood", "--text", "a good film", "--out", "~/answers.jsonl").status == 0
    assert json.loads((home / "answers.jsonl").read_text())["text"] == ["a good film"]
    assert list((tmp_path / "here").iterdir()) == []


EMPTY = {
    "train": ("train", "--backbone", "BACKBONE", "--train", "TRAIN", "--method", "head", "--out", ""),
    "train, the rows": ("train", "--backbone", "BACKBONE", "--train", "", "--method", "head", "--out", "x"),
    "train, by --set": ("train", "--backbone", "BACKBONE", "--train", "TRAIN", "--method", "head", "--set", "out=''"),
    "compare": ("compare", "--backbone", "BACKBONE", "--train", "TRAIN", "--out", ""),
    "predict": ("predict", "TASK", "--text", "good", "--out", ""),
    "evaluate": ("evaluate", ""),
    "ablate": ("ablate", "TASK", "--out", ""),
    "serve": ("serve", "--backbone", "BACKBONE", "--tasks", ""),
}


@pytest.mark.parametrize("argv", EMPTY.values(), ids=EMPTY)
def test_an_empty_path_is_no_folder(cli, backbone, files, trained, home, tmp_path, argv):
    known = {"BACKBONE": backbone, "TRAIN": files["train"], "TASK": trained}
    refused(cli, tmp_path, [known.get(part, part) for part in argv], "expected a path, got an empty one")


def test_run_files_know_the_home_folder_and_refuse_an_empty_path(home, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("{backbone: b, method: head, data: {train: ~/a.csv}, out: ~/x}")
    settings = resolve(path, {})
    assert (settings.data.train, settings.out) == (home / "a.csv", home / "x")
    path.write_text("{backbone: b, data: {train: ~/a.csv}, out: ~/x}")
    assert comparing.resolve(path, {}, ["data.test=~/t.csv"]).base.data.test == home / "t.csv"
    pack = "{{backbone: b, method: head, data: {{train: a.csv}}, out: {out}, runs: [{{name: one}}]}}"
    path.write_text(pack.format(out="~/x"))
    assert resolve_pack(path, {})[0].out == home / "x/one"
    path.write_text(pack.format(out="''"))
    with pytest.raises(ConfigError, match="out is missing"):
        resolve_pack(path, {})
    path.write_text("{backbone: b, method: head, data: {train: ''}, out: x}")
    with pytest.raises(ConfigError, match=r"data\.train: expected a path, got an empty one"):
        resolve(path, {})
    path.write_text('{backbone: b, method: head, data: {train: "a\\0b.csv"}, out: x}')
    with pytest.raises(ConfigError, match=r"data\.train: expected a path, got one with a NUL character"):
        resolve(path, {})


def test_a_folder_that_may_not_be_written_to_is_said_before_anything_is_answered(cli, trained, tmp_path, monkeypatch):
    """`os.access` stands in for a folder of another user: the tests may run as root."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr("intarsia.backbone.Backbone.load", lambda *given, **named: pytest.fail("the model was loaded"))
    refused(cli, tmp_path, ["predict", trained, "--text", "a", "--out", tmp_path / "out.jsonl"], "cannot write to")


def test_a_pipe_or_a_link_to_write_to_stays_what_it_is(tmp_path):
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    link.symlink_to(target)
    target.write_text("before")
    for path in (pipe, link):
        with written_whole(path) as file:
            file.write("answers")
    assert os.read(reader, 100) == b"answers"
    os.close(reader)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert target.read_text() == "answers"
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link", "target"}
