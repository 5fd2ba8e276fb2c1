"""The commands end to end, on a tiny random BERT."""

import json
import shutil

import pytest

from intarsia.methods import METHODS
from workflow.tiny_run import make_backbone, sentences, train_arguments, write_csv


def test_train_writes_the_task_and_everything_about_the_run(trained):
    expected = {"task.json", "task.safetensors", "run.json", "metrics.jsonl", "curve.png"}
    assert {file.name for file in trained.iterdir()} == expected
    run = json.loads((trained / "run.json").read_text())
    assert run["run"]["method"]["width"] == 4
    assert run["run"]["train"]["epochs"] == 2
    assert run["versions"]["torch"]
    assert run["data"]
    task = json.loads((trained / "task.json").read_text())
    assert task["head"]["labels"] == ["neg", "pos"]
    assert task["data"]["text_columns"] == ["text"]
    assert task["data"]["max_length"] == 32
    assert str(trained.parent) not in json.dumps(task), "a path of the training machine went into the task"


def test_train_prints_a_table_and_says_what_it_guessed(cli, backbone, files, tmp_path):
    done = cli(*train_arguments(backbone, files), "--test", files["test"], "--max-steps", 2, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "validation accuracy" in done.out
    assert "test accuracy" in done.out
    assert "trained parameters" in done.out
    assert "label column guessed" in done.err
    assert "\x1b" not in done.out + done.err, "no terminal, no control codes"
    metrics = json.loads((tmp_path / "out" / "task.json").read_text())["metrics"]
    assert {"accuracy", "test_accuracy"} <= metrics.keys()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_predicts(cli, backbone, files, tmp_path, method):
    out = tmp_path / "out"
    given = ("--backbone", backbone, "--train", files["train"], "--max-steps", 1, "--out", out)
    done = cli("train", *given, "--method", method, *(("--set", "method.k=1") if method == "top-layers" else ()))
    assert done.status == 0, done.err
    assert cli("predict", out, "--text", "a good film").status == 0


def test_evaluate_prints_a_table_or_one_json_object(cli, trained, files):
    table = cli("evaluate", trained, "--data", files["test"])
    assert table.status == 0, table.err
    assert "accuracy" in table.out
    assert f"file      {files['test']}" in table.out
    assert "split" not in table.out
    (found,) = cli("evaluate", trained, "--data", files["test"], "--json").lines()
    assert found["split"] == str(files["test"])
    assert found["rows"] == 32
    assert 0 <= found["metrics"]["accuracy"] <= 1
    assert f"{found['metrics']['accuracy']:.4f}" in table.out


def test_evaluate_gives_the_validation_score_that_training_reported(cli, trained, files):
    (found,) = cli("evaluate", trained, "--data", files["validation"], "--json").lines()
    saved = json.loads((trained / "task.json").read_text())["metrics"]
    assert found["metrics"]["accuracy"] == saved["accuracy"]


def test_evaluate_takes_the_labels_of_the_task_however_the_file_orders_them(cli, trained, tmp_path):
    rows = sentences(20, seed=5)
    one_class = write_csv(tmp_path / "one.csv", [row for row in rows if row[1] == "pos"])
    (found,) = cli("evaluate", trained, "--data", one_class, "--json").lines()
    lines = cli("predict", trained, "--data", one_class).lines()
    assert found["metrics"]["accuracy"] == pytest.approx(sum(line["label"] == "pos" for line in lines) / 10)


def test_predict_answers_in_the_order_of_the_rows(cli, trained, files):
    lines = cli("predict", trained, "--data", files["test"]).lines()
    assert len(lines) == 32
    for line in lines[:5]:
        (alone,) = cli("predict", trained, "--text", line["text"][0]).lines()
        assert alone["label"] == line["label"]
        assert alone["scores"] == pytest.approx(line["scores"], abs=1e-5)
        assert sum(line["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert max(line["scores"], key=line["scores"].get) == line["label"] == ["neg", "pos"][line["prediction"]]


def test_predict_writes_a_file_whole(cli, trained, files, tmp_path):
    done = cli("predict", trained, "--data", files["test"], "--out", tmp_path / "answers.jsonl")
    assert (done.status, done.out) == (0, "")
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 32
    assert [file.name for file in tmp_path.glob("*answers*")] == ["answers.jsonl"]


def test_a_backbone_that_moved_is_given_by_hand(cli, trained, tmp_path):
    moved = make_backbone(tmp_path / "moved")
    assert cli("predict", trained, "--text", "good", "--backbone", moved).status == 0


def test_pairs_are_texts_by_twos(cli, backbone, tmp_path):
    rows = sentences(40)
    pairs = [(a, b, str(int(x == y))) for (a, x), (b, y) in zip(rows, rows[1:] + rows[:1], strict=True)]
    pairs += [(a, a, "1") for a, _ in rows[:20]]
    file = write_csv(tmp_path / "pairs.csv", pairs, ("first", "second", "same"))
    columns = ("--text-columns", "first,second", "--label-column", "same")
    out = tmp_path / "out"
    done = cli(
        "train", "--backbone", backbone, "--train", file, *columns, "--method", "lora", "--max-steps", 2, "--out", out
    )
    assert done.status == 0, done.err
    lines = cli("predict", out, "--text", "good film", "--text", "bad film", "--text", "a", "--text", "b").lines()
    assert [line["text"] for line in lines] == [["good film", "bad film"], ["a", "b"]]
    assert cli("evaluate", out, "--data", file).status == 0


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("regression", [{"text": text, "label": 0.5 + (label == "pos")} for text, label in sentences(30)]),
        ("multi-label", [{"text": text, "label": [label, "film"]} for text, label in sentences(30)]),
        (
            "token-classification",
            [{"text": t.split(), "label": ["O"] * (len(t.split()) - 1) + [m]} for t, m in sentences(30)],
        ),
    ],
)
def test_every_kind_of_task_goes_from_file_to_prediction(cli, backbone, tmp_path, kind, rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    given = ("--backbone", backbone, "--train", file, "--set", f"data.kind={kind}", "--method", "adapter")
    done = cli("train", *given, "--max-steps", 2, "--out", out)
    assert done.status == 0, done.err
    lines = cli("predict", out, "--data", file).lines()
    assert len(lines) == 30
    if kind == "token-classification":
        assert [len(line["label"]) for line in lines] == [len(row["text"]) for row in rows]
        (typed,) = cli("predict", out, "--text", "a good film").lines()
        assert len(typed["label"]) == 3
    assert cli("evaluate", out, "--data", file).status == 0


def test_inspect_shows_a_task_and_a_backbone(cli, trained, backbone):
    task = cli("inspect", trained)
    assert task.status == 0, task.err
    for part in ("adapter", "width", "neg, pos", "fingerprint", "encoder/0/attn_out", "float32"):
        assert part in task.out
    (found,) = cli("inspect", trained, "--json").lines()
    assert found["bytes"] == sum((trained / name).stat().st_size for name in ("task.json", "task.safetensors"))
    (found,) = cli("inspect", backbone, "--json").lines()
    assert found["hidden"] == 32
    assert "encoder/1/ffn_out" in cli("inspect", backbone).out


@pytest.fixture
def prompted(cli, tmp_path, files):
    """A task with a prompt that starts as the words it is made of, and the folder of its backbone."""
    backbone, out = make_backbone(tmp_path / "tiny"), tmp_path / "prompted"
    given = ("--backbone", backbone, "--train", files["train"], "--max-steps", 1, "--lr", 1e-9, "--out", out)
    text = ("--set", "method.init=text", "--set", "method.init_text=great film", "--set", "method.length=2")
    done = cli("train", *given, "--method", "prompt", *text)
    assert done.status == 0, done.err
    return out, backbone


def test_inspect_shows_the_words_nearest_to_a_prompt(cli, prompted):
    out, backbone = prompted
    (found,) = cli("inspect", out, "--json").lines()
    assert [row[0]["word"] for row in found["words"]] == ["great", "film"]
    assert found["words"][0][0]["cosine"] == pytest.approx(1, abs=1e-3)
    assert [len(row) for row in found["words"]] == [3, 3]
    assert "great 1.00" in cli("inspect", out).out
    shutil.rmtree(backbone)
    without = cli("inspect", out)
    assert without.status == 0, without.err
    assert without.out.count("the words nearest to the prompt need its backbone: cannot load backbone") == 1
    assert "prompt" in without.out
    (found,) = cli("inspect", out, "--json").lines()
    assert found["words"] is None
    assert "no such folder" in found["words_missing"]


def test_the_methods_in_the_help_are_those_that_there_are():
    from intarsia.cli.train import METHOD_NAMES

    assert METHOD_NAMES.split(", ") == list(METHODS)


def test_doctor_finds_nothing_wrong_with_any_method(cli, tmp_path):
    backbone = make_backbone(tmp_path / "tiny", positions=64)
    done = cli("doctor", "--backbone", backbone, "--json")
    assert done.status == 0, done.out + done.err
    (found,) = done.lines()
    assert {finding["status"] for finding in found["findings"]} == {"pass"}
    # Of a prompt, no identity is asked; of the others, no effect of virtual tokens.
    assert len(found["findings"]) == 9 * len(METHODS)
    table = cli("doctor", "--backbone", backbone, "--method", "prefix")
    assert table.out.count("pass") == 9
    assert "the virtual tokens change every row" in table.out


def test_resume_needs_the_folder_only_and_says_when_nothing_is_left(cli, trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "mood")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    done = cli("train", "--out", out, "--resume")
    assert done.status == 0, done.err
    assert "nothing is left to train" in done.err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize("command", ["train", "compare"])
def test_what_is_stopped_before_it_began_is_not_said_to_go_on(cli, backbone, files, tmp_path, monkeypatch, command):
    def stop(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("intarsia.backbone.Backbone.load", stop)
    method = ["--method" if command == "train" else "--methods", "head"]
    stopped = cli(
        command,
        "--backbone",
        backbone,
        "--train",
        files["train"],
        *method,
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
    )
    assert stopped.status == 130
    assert "nothing is lost, start it again" in stopped.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
