"""Bad input: exit status 2, exactly one line on stderr that names the trouble, no traceback, and nothing lost or written."""

import shutil
import sys
from pathlib import Path

import pytest
from refusal import refused, tree

from workflow.tiny_run import sentences, train_arguments

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
