"""Bad input: exit status 2, exactly one line on stderr that names the trouble, no traceback, and nothing lost or written."""

# ruff: noqa: E501 - the tables read best with one case per line

import json
import shutil
import struct
import sys
from pathlib import Path

import pytest
from refusal import refused, tree

from workflow.tiny_run import make_backbone, sentences, train_arguments, write_csv

GOOD = "text,label\n" + "".join(f"{text},{label}\n" for text, label in sentences(20))
REGRESSION = "text,label\n" + "".join(f"{text},{0.1 * i + 0.05}\n" for i, (text, _) in enumerate(sentences(20)))


# name: (the training file, more arguments, a part of the message)
DATA = {
    "wrong text column": (GOOD, ["--text-columns", "txt"], "no column 'txt'"),
    "wrong label column": (GOOD, ["--label-column", "lable"], "did you mean 'label'?"),
    "text and label are one column": (GOOD, ["--text-columns", "label", "--label-column", "label"], "must differ"),
    "three text columns": (GOOD, ["--text-columns", "a,b,c"], "one column, or two"),
    "zero rows": ("text,label\n", [], "zero rows"),
    "empty file": ("", [], "empty"),
    "one class only": ("text,label\nfine,a\ngood,a\n", [], "one label"),
    "empty text": (GOOD + ",pos\n", [], "empty text"),
    "blank text": (GOOD + "   ,pos\n", [], "empty text"),
    "no label in a row": (GOOD + "fine film,\n", [], "no label"),
    "duplicate column": ("text,label,text\na,b,c\n", [], "occurs 2 times"),
    "a row with too many fields": (GOOD + "a,pos,c\n", [], "3 fields"),
    "mixed encodings": (GOOD.encode() + b"caf\xe9,pos\n", [], "not UTF-8"),
    "UTF-16": (GOOD.encode("utf-16"), [], "UTF-16"),
    "NUL bytes": (GOOD + "a\0b,pos\n", [], "NUL"),
    "floats as classes": (REGRESSION, ["--set", "data.kind=classification"], "fractions"),
    "thousands of columns": (",".join(f"column{i}" for i in range(5000)) + "\n" + "a," * 4999 + "a\n", [], "[...]"),
    "words as numbers": (GOOD, ["--set", "data.kind=regression"], "'label'"),
    "classification rows for token-classification": (
        GOOD,
        ["--set", "data.kind=token-classification"],
        "list of words",
    ),
    "semicolons": (GOOD.replace(",", ";"), [], "columns must be separated by commas, and ';' stands"),
    "a label that training never saw": (GOOD, ["--validation", "unseen.csv"], "maybe"),
    "validation without the label column": (GOOD, ["--validation", "unlabelled.csv"], "no label column"),
    "missing validation file": (GOOD, ["--validation", "nowhere.csv"], "nowhere.csv"),
    "unknown kind": (GOOD, ["--set", "data.kind=regresion"], "data.kind"),
    "validation fraction above 1": (GOOD, ["--set", "data.validation_fraction=2"], "data.validation_fraction"),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_data_is_one_line(cli, backbone, tmp_path, monkeypatch, case):
    content, more, fragment = DATA[case]
    monkeypatch.chdir(tmp_path)
    Path("train.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    Path("unseen.csv").write_text("text,label\nfine book,maybe\n")
    Path("unlabelled.csv").write_text("text\nfine book\n")
    argv = ["train", "--backbone", backbone, "--method", "adapter", "--train", "train.csv", "--out", "out", *more]
    refused(cli, tmp_path, argv, fragment)


# name: (arguments after a good `train` command, a part of the message)
SETTINGS = {
    "missing training file": (["--train", "nowhere.csv"], "nowhere.csv"),
    "training file is a folder": (["--train", "."], ""),
    "data and files": (["--data", "embedded:questions"], "--data and --train"),
    "training file is an address": (["--train", "https://x.org/train.csv"], "files must be local: download it"),
    "unknown method": (["--method", "adaptor"], "did you mean 'adapter'?"),
    "negative width": (["--set", "method.width=-4"], "width must be at least 1"),
    "width 0": (["--set", "method.width=0"], "width must be at least 1"),
    "width beyond counting": (["--set", "method.width=99999999999"], "width: must be below 2147483648"),
    "steps beyond counting": (["--max-steps", "99999999999999999999"], "train.max_steps"),
    "warm-up beyond the end": (["--set", "train.warmup=1.5"], "train.warmup"),
    "width is a word": (["--set", "method.width=wide"], "width"),
    "width and factor disagree": (["--set", "method.reduction_factor=2"], "disagree"),
    "misspelt method key": (["--set", "method.widht=4"], "'method.widht'; did you mean 'method.width'?"),
    "misspelt key": (["--set", "trian.epochs=4"], "'trian.epochs'"),
    "misspelt inner key": (["--set", "train.epoch=4"], "did you mean 'train.epochs'?"),
    "key of a single value": (["--set", "out.folder=x"], "'out' is a single value"),
    "override without a value": (["--set", "train.epochs"], "KEY=VALUE"),
    "override that is no YAML": (["--set", "method.after=[attn_out"], "not valid YAML"),
    "lr is nan": (["--lr", "nan"], "train.learning_rate"),
    "lr is infinite": (["--lr", "inf"], "train.learning_rate"),
    "negative lr": (["--lr", "-0.1"], "train.learning_rate"),
    "zero epochs": (["--epochs", "0"], "train.epochs"),
    "zero steps": (["--max-steps", "0"], "train.max_steps"),
    "batch of none": (["--batch-size", "0"], "train.batch_size"),
    "negative seed": (["--seed", "-1"], "train.seed"),
    "half an epoch": (["--epochs", "0.5"], "--epochs"),
    "unknown dtype": (["--dtype", "float8"], "dtype"),
    "unknown device": (["--device", "gpu"], "device"),
    "a device without numbers": (["--device", "meta"], "torch cannot compute on device 'meta' here"),
    "a device that torch was not built for": (["--device", "vulkan"], "torch cannot compute on device 'vulkan' here"),
    "unknown logger": (["--log", "tensorbord"], "log"),
    "a logger that is not installed": (["--log", "trackio"], "trackio"),
    "unknown metric": (["--set", "train.metric=accuracyy"], "accuracy"),
    "unknown pooling": (["--set", "head.pooling=max"], "head.pooling"),
    "dropout of 1": (["--set", "head.dropout=1"], "head.dropout"),
    "longer than the backbone": (["--set", "train.max_length=4096"], "takes 32 tokens"),
    "shorter than the special tokens": (["--set", "train.max_length=2"], "max_length"),
    "unknown non-linearity": (["--set", "method.non_linearity=rleu"], "relu"),
    "layer that is not there": (["--set", "method.leave_out=[7]"], "leave_out"),
    "missing backbone": (["--backbone", "./nowhere"], "nowhere"),
    "unknown embedded backbone": (["--backbone", "embedded:minilmm"], "embedded:minilm"),
    "backbone is a file": (["--backbone", "broken.yaml"], "broken.yaml"),
    "task name with a slash": (["--set", "name=a/b"], "slashes"),
    "out is a file": (["--out", "broken.yaml"], "broken.yaml"),
    "out lies in a file": (["--out", "broken.yaml/out"], "broken.yaml"),
    "nothing to resume": (["--resume"], "no run.json"),
    "run file is missing": (["nowhere.yaml"], "nowhere.yaml"),
    "run file is broken": (["broken.yaml"], "line 3"),
    "run file is a list": (["list.yaml"], "a list"),
    "run file is binary": (["binary.yaml"], "not UTF-8"),
    "run file nests 10,000 lists": (["deep.yaml"], "nested deeper"),
    "run file is a bomb of aliases": (["bomb.yaml"], "aliases"),
    "run file gives a key twice": (["twice.yaml"], "given twice"),
    "run file has an unknown key": (["unknown.yaml"], "did you mean 'backbone'?"),
    "run file builds an object": (["object.yaml"], "not valid YAML"),
}
RUN_FILES = {
    "broken.yaml": "a: 1\nb: [1\n",
    "list.yaml": "- a\n- b\n",
    "binary.yaml": b"\xff\xfe\x00\x01",
    "deep.yaml": "data: " + "[" * 10_000 + "]" * 10_000,
    "bomb.yaml": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "twice.yaml": "train: {epochs: 1}\ntrain: {epochs: 2}\n",
    "unknown.yaml": "backbon: x\n",
    "object.yaml": "name: !!python/object/apply:os.system ['true']\n",
}


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_settings_are_one_line(cli, backbone, files, tmp_path, monkeypatch, case):
    more, fragment = SETTINGS[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "trackio", None)
    for name, content in RUN_FILES.items():
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    argv = [*train_arguments(backbone, files), "--out", "out", *more]
    refused(cli, tmp_path, argv, fragment)


@pytest.mark.parametrize("key", ["backbone", "data", "method", "out"])
def test_a_missing_setting_is_named_with_its_flag(cli, tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    given = {"backbone": "x", "data": "embedded:questions", "method": "adapter", "out": "out"}
    argv = ["train", *(part for name, value in given.items() if name != key for part in (f"--{name}", value))]
    refused(cli, tmp_path, argv, f"{key} is missing; give --{key}")


# what torch, numpy and our own kernels raise: (error, a part of the message)
MEMORY = {
    "torch on a CPU": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
            "12799999999872 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "out of memory: 12,799,999,999,872 bytes more were asked for; try a smaller --batch-size",
    ),
    "torch on a GPU": (
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB"),
        "out of memory: 20.00 GiB more were asked for",
    ),
    "numpy": (MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000, 1000000)"), "7.28 TiB"),
    "Python": (MemoryError(), "out of memory; try"),
}


@pytest.mark.parametrize(("error", "fragment"), MEMORY.values(), ids=MEMORY)
def test_too_little_memory_is_one_line(cli, tmp_path, monkeypatch, error, fragment):
    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("intarsia.workflow.training.run", run)
    argv = ["train", "--backbone", "b", "--data", "embedded:questions", "--method", "adapter", "--out", "out"]
    refused(cli, tmp_path, argv, fragment)


def test_other_faults_of_torch_keep_their_traceback(cli, monkeypatch):
    def run(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("intarsia.workflow.training.run", run)
    with pytest.raises(RuntimeError, match="mat1"):
        cli("train", "--backbone", "b", "--data", "embedded:questions", "--method", "adapter", "--out", "out")


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


def test_a_finished_run_is_not_overwritten(cli, backbone, files, trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "mood")
    refused(cli, tmp_path, [*train_arguments(backbone, files), "--out", out], "already holds a run")


def test_resume_with_other_settings_names_the_difference(cli, trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "mood")
    before = tree(out)
    done = cli("train", "--out", out, "--resume", "--lr", "0.5")
    assert done.status == 2
    assert "learning_rate was 0.001 and is 0.5" in done.err.splitlines()[-1]
    assert tree(out) == before


def test_predictions_there_before_survive_a_failure(cli, trained, tmp_path):
    kept = write_csv(tmp_path / "answers.jsonl", [])
    bad = tmp_path / "bad.csv"
    bad.write_text("text\nfine\n\n,\n")
    refused(cli, tmp_path, ["predict", trained, "--data", bad, "--out", kept], "bad.csv")
