"""Damaged tasks, and bad use of good ones: exit status 2, one line on stderr, and nothing lost or written."""

# ruff: noqa: E501 - the table of damages reads best with one case per line

import json
import shutil
import struct
from pathlib import Path

import pytest
from refusal import refused

from workflow.tiny_run import make_backbone, write_csv


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def retensor(path: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# name: (what happens to the folder, a part of the message)
TASKS = {
    "no such folder": (shutil.rmtree, "not a task folder"),
    "no task.json": (lambda d: (d / "task.json").unlink(), "task.json"),
    "no task.safetensors": (lambda d: (d / "task.safetensors").unlink(), "task.safetensors"),
    "truncated tensors": (lambda d: (d / "task.safetensors").write_bytes((d / "task.safetensors").read_bytes()[:-100]), "truncated"),
    "empty tensors": (lambda d: (d / "task.safetensors").write_bytes(b""), "truncated"),
    "header of 2^62 bytes": (lambda d: (d / "task.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}"), "damaged"),
    "an edited tensor byte": (lambda d: flip(d / "task.safetensors"), "hash"),
    "a missing tensor": (lambda d: retensor(d / "task.safetensors", lambda t: t.pop("head.bias")), "head.bias"),
    "a surplus tensor": (lambda d: retensor(d / "task.safetensors", lambda t: t.update(extra=t["head.bias"].clone())), "extra"),
    "a tensor of another shape": (lambda d: retensor(d / "task.safetensors", lambda t: t.update({"head.bias": t["head.bias"].repeat(1, 2)})), "head.bias"),
    "unknown format version": (lambda d: edit(d / "task.json", format=99), "format version 99"),
    "edited labels": (lambda d: edit(d / "task.json", head={"kind": "classification", "labels": ["x", "y"], "pooling": "mean", "dropout": 0.1}), "hash"),
    "edited metrics": (lambda d: edit(d / "task.json", metrics={"accuracy": 1.0}), "hash"),
    "unknown field": (lambda d: edit(d / "task.json", code="print(1)"), "'code'"),
    "field of another type": (lambda d: edit(d / "task.json", data=[]), "'data'"),
    "task.json is a list": (lambda d: (d / "task.json").write_text("[]"), "task.json"),
    "task.json is cut": (lambda d: (d / "task.json").write_bytes((d / "task.json").read_bytes()[:50]), "task.json"),
    "task.json nests deeply": (lambda d: (d / "task.json").write_text("[" * 2_000_000 + "]" * 2_000_000), "nested too deeply"),
    "task.json of 100 MB": (lambda d: (d / "task.json").write_text('{"a":' * 20_000_000), "bytes"),
}  # fmt: skip


# For `inspect`, a folder without either file is a backbone that is not there.
CASES = [
    (case, command)
    for case in TASKS
    for command in ("predict", "inspect")
    if (case, command) != ("no such folder", "inspect")
]


@pytest.mark.parametrize(("case", "command"), CASES)
def test_a_damaged_task_is_refused_in_one_line(cli, trained, tmp_path, case, command):
    damage, fragment = TASKS[case]
    folder = shutil.copytree(trained, tmp_path / "mood")
    damage(folder)
    refused(cli, tmp_path, [command, folder, *(("--text", "good film") if command == "predict" else ())], fragment)


def test_a_task_of_another_backbone_is_refused(cli, trained, tmp_path):
    other = make_backbone(tmp_path / "other", seed=1)
    refused(cli, tmp_path, ["predict", trained, "--text", "good", "--backbone", other], "fingerprint")


# name: (arguments, a part of the message); TASK and FILE stand for a trained task and its test file
USES = {
    "predict nothing": (["predict", "TASK"], "--text"),
    "predict text and data": (["predict", "TASK", "--text", "a", "--data", "FILE"], "not both"),
    "predict an empty text": (["predict", "TASK", "--text", ""], "empty"),
    "predict a blank text": (["predict", "TASK", "--text", "good", "--text", " "], "text 2 is empty"),
    "predict a missing file": (["predict", "TASK", "--data", "nowhere.csv"], "nowhere.csv"),
    "predict into a folder": (["predict", "TASK", "--text", "a", "--out", "."], "--out"),
    "predict into no folder": (["predict", "TASK", "--text", "a", "--out", "no/where.jsonl"], "--out"),
    "predict a wrong column": (["predict", "TASK", "--data", "FILE", "--text-columns", "txt"], "no column 'txt'"),
    "predict on more columns than it reads": (
        ["predict", "TASK", "--data", "FILE", "--text-columns", "text,label"],
        "reads 1 text(s) per row, text in training",
    ),
    "predict with no backbone": (["predict", "TASK", "--text", "a", "--backbone", "./nowhere"], "nowhere"),
    "predict on an unknown device": (["predict", "TASK", "--text", "a", "--device", "tpu9"], "device"),
    "predict in an unknown dtype": (["predict", "TASK", "--text", "a", "--dtype", "int3"], "dtype"),
    "predict a batch of none": (["predict", "TASK", "--text", "a", "--batch-size", "0"], "--batch-size"),
    "evaluate without data": (["evaluate", "TASK"], "--data"),
    "evaluate a missing file": (["evaluate", "TASK", "--data", "nowhere.csv"], "nowhere.csv"),
    "evaluate an unseen label": (["evaluate", "TASK", "--data", "unseen.csv"], "maybe"),
    "evaluate a wrong label column": (["evaluate", "TASK", "--data", "FILE", "--label-column", "lable"], "lable"),
    "evaluate more columns than it reads": (
        ["evaluate", "TASK", "--data", "pairs.csv", "--text-columns", "a,b"],
        "reads 1 text(s) per row, text in training",
    ),
    "predict by many tasks with beams": (
        ["predict", "--backbone", "B", "--tasks", ".", "--data", "FILE", "--beams", "2"],
        "--beams is for TASK_DIR",
    ),
    "ablate an unknown split": (["ablate", "TASK", "--data", "FILE", "--split", "tset"], "did you mean 'test'?"),
    "evaluate unknown embedded data": (["evaluate", "TASK", "--data", "embedded:question"], "question"),
    "evaluate a misspelt source": (["evaluate", "TASK", "--data", "embeded:questions"], "embeded:questions"),
    "evaluate a split of a file": (["evaluate", "TASK", "--data", "FILE", "--split", "train"], "which has no splits"),
    "predict a split of a file": (["predict", "TASK", "--data", "FILE", "--split", "test"], "leave --split test out"),
    "ablate on a split of a file": (["ablate", "TASK", "--data", "FILE", "--split", "test"], "which has no splits"),
    "evaluate no data": (["evaluate", "TASK", "--data", ""], "data is empty"),
    "evaluate an address": (["evaluate", "TASK", "--data", "https://x.org/a.csv"], "files must be local: download it"),
    "evaluate the page of a data set": (
        ["evaluate", "TASK", "--data", "https://huggingface.co/datasets/glue"],
        "or give hub:NAME",
    ),
    "predict from standard input": (["predict", "TASK", "--data", "-"], "not read from standard input or a pipe"),
    "predict from a device": (["predict", "TASK", "--data", "/dev/null"], "not read from standard input or a pipe"),
    "predict bytes that are no UTF-8": (["predict", "TASK", "--text", "caf\udce9"], "bytes that are not UTF-8"),
    "evaluate an unknown split": (["evaluate", "TASK", "--data", "embedded:questions", "--split", "tset"], "tset"),
    "predict with beams what is no text": (
        ["predict", "TASK", "--text", "a", "--beams", "2"],
        "beams is for tasks that generate",
    ),
    "predict by a vote of one": (["predict", "TASK", "--text", "a", "--combine", "mean"], "one folder is given"),
    "evaluate two tasks without a vote": (["evaluate", "TASK", "TASK", "--data", "FILE"], "--combine majority"),
    "evaluate by an unknown vote": (
        ["evaluate", "TASK", "TASK", "--data", "FILE", "--combine", "median"],
        "majority, mean",
    ),
    "evaluate a vote with no folder": (
        ["evaluate", "TASK", "./nowhere", "--data", "FILE", "--combine", "mean"],
        "nowhere",
    ),
    "inspect nothing": (["inspect", "./nowhere"], "nowhere"),
    "doctor for no backbone": (["doctor", "--backbone", "./nowhere"], "nowhere"),
    "doctor for an unknown method": (["doctor", "--backbone", "BACKBONE", "--method", "lorra"], "did you mean 'lora'?"),
}


@pytest.mark.parametrize("case", USES)
def test_bad_use_of_a_task_is_one_line(cli, backbone, trained, files, tmp_path, monkeypatch, case):
    argv, fragment = USES[case]
    monkeypatch.chdir(tmp_path)
    Path("unseen.csv").write_text("text,label\nfine book,maybe\n")
    Path("pairs.csv").write_text("a,b,label\nfine book,good book,pos\n")
    places = {"TASK": trained, "FILE": files["test"], "BACKBONE": backbone}
    refused(cli, tmp_path, [places.get(part, part) for part in argv], fragment)


def test_predictions_there_before_survive_a_failure(cli, trained, tmp_path):
    kept = write_csv(tmp_path / "answers.jsonl", [])
    bad = tmp_path / "bad.csv"
    bad.write_text("text\nfine\n\n,\n")
    refused(cli, tmp_path, ["predict", trained, "--data", bad, "--out", kept], "bad.csv")
