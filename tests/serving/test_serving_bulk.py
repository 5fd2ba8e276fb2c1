"""A file through many tasks: every line is the solo answer, and a stopped run goes on."""

import csv
import itertools
import json

import pytest

import intarsia
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError, DataError, TaskError
from intarsia.heads import Head
from intarsia.methods import LoRA
from intarsia.serving import bulk
from intarsia.serving.bulk import predict_folder
from intarsia.task import Task
from serving.served import make, save
from workflow.tiny_run import cli, make_backbone, make_decoder

TEXTS = ["good film", "the plot was very poor", "fine", "a bad bad film", "great book"]
__all__ = ["cli"]


@pytest.fixture
def there(tmp_path):
    """Three tasks in a folder."""
    backbone = Backbone.load(str(make_backbone(tmp_path / "backbone")), dtype="float32")
    for number, name in enumerate(("mood", "spam", "topic")):
        save(backbone, tmp_path / "tasks", name, number, seed=number)
    return tmp_path


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_go_to_the_task_that_they_name(there):
    names = ["mood", "topic", "spam", "mood", "topic"]
    data = write(there / "rows.csv", [{"task": n, "text": t} for n, t in zip(names, TEXTS, strict=True)])
    ended = predict_folder(there / "tasks", data, there / "out.jsonl", dtype="float32")
    assert (ended.answered, ended.failed, ended.before) == (5, 0, 0)
    for row, (line, name) in enumerate(zip(lines(there / "out.jsonl"), names, strict=True)):
        alone = intarsia.predict(there / "tasks" / name, [TEXTS[row]], dtype="float32")[0]
        assert (line["row"], line["task"], line["label"]) == (row, name, alone.label)
        assert line["scores"] == pytest.approx(alone.scores, abs=1e-5)


def test_the_backbone_is_that_of_the_tasks_that_are_asked(there):
    other = Backbone.load(str(make_decoder(there / "decoder")), dtype="float32")
    save(other, there / "tasks", "a-first-one", 0)
    data = write(there / "rows.csv", [{"task": "mood", "text": t} for t in TEXTS])
    assert predict_folder(there / "tasks", data, there / "out.jsonl", dtype="float32").answered == 5


def test_of_a_folder_with_several_backbones_those_of_the_one_that_is_named_are_asked(there, cli):
    """As the server takes them; README trains over three backbones into one folder, and then asks it."""
    other = Backbone.load(str(make_decoder(there / "decoder")), dtype="float32")
    save(other, there / "tasks", "a-first-one", 0)
    data, out = write(there / "rows.csv", [{"text": t} for t in TEXTS]), there / "out.jsonl"
    given = ("predict", "--tasks", there / "tasks", "--data", data, "--dtype", "float32", "--out", out)
    done = cli(*given)
    assert done.status == 2
    assert "a-first-one on " in done.err
    assert "mood, spam, topic on " in done.err
    assert done.err.endswith("; give --backbone B to ask those of one\n")
    assert not out.exists()
    done = cli(*given, "--backbone", there / "backbone")
    assert done.status == 0, done.err
    assert "left out: a-first-one (of another backbone)\n" in done.err
    assert [line["task"] for line in lines(out)] == ["mood", "spam", "topic"] * len(TEXTS)

    write(data, [{"text": "good film", "task": name} for name in ("mood", "a-first-one")])
    with pytest.raises(ConfigError, match="give a file of rows for each backbone"):
        predict_folder(there / "tasks", data, None, backbone=str(there / "backbone"), dtype="float32")


def test_without_a_task_column_every_task_answers_every_row(there, capsys):
    data = write(there / "rows.csv", [{"text": t} for t in TEXTS])
    predict_folder(there / "tasks", data, None, dtype="float32")
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["row"], line["task"]) for line in found] == [
        (r, n) for r in range(5) for n in ("mood", "spam", "topic")
    ]


def test_without_a_task_column_those_answer_that_find_what_they_read(there):
    backbone, out = Backbone.load(str(there / "backbone"), dtype="float32"), there / "out.jsonl"
    task = make(backbone, "pairs")
    task.data = {"text_columns": ["text", "other"]}
    task.save(there / "tasks" / "pairs")
    data = write(there / "rows.csv", [{"text": "good film"}])
    ended = predict_folder(there / "tasks", data, out, dtype="float32")
    assert ended.left_out == {"pairs": "reads a column 'other', which is not there"}
    assert [line["task"] for line in lines(out)] == ["mood", "spam", "topic"]
    named = write(there / "rows.csv", [{"text": "good film", "task": "pairs"}])
    with pytest.raises(DataError, match="no column 'other', which task 'pairs' reads"):
        predict_folder(there / "tasks", named, None, dtype="float32")


def test_a_stopped_run_goes_on_behind_its_last_whole_line(there):
    data, out = write(there / "rows.csv", [{"text": t} for t in TEXTS]), there / "out.jsonl"
    predict_folder(there / "tasks", data, out, dtype="float32")
    whole = out.read_text()
    kept = whole.splitlines(keepends=True)
    out.write_text("".join(kept[:6]) + kept[6][:20])
    ended = predict_folder(there / "tasks", data, out, dtype="float32")
    assert (ended.answered, ended.before) == (9, 6)
    assert [{**line, "scores": None} for line in lines(out)] == [{**json.loads(line), "scores": None} for line in kept]
    backbone = Backbone.load(str(there / "backbone"), dtype="float32")
    save(backbone, there / "tasks", "mood", 1, seed=9)
    before = out.read_text()
    with pytest.raises(ConfigError, match="line 1 is not of this file"):
        predict_folder(there / "tasks", data, out, dtype="float32")
    assert out.read_text() == before


def test_ctrl_c_says_where_the_answers_are_and_how_it_goes_on(there, cli, monkeypatch):
    data = write(there / "rows.csv", [{"text": t} for t in TEXTS])
    out, of_all = there / "out.jsonl", bulk._answers

    def stopped(*given):
        yield from itertools.islice(of_all(*given), 4)
        raise KeyboardInterrupt

    argv = (
        "predict",
        "--tasks",
        there / "tasks",
        "--data",
        data,
        "--out",
        out,
        "--device",
        "cpu",
        "--dtype",
        "float32",
    )
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "_answers", stopped)
        done = cli(*argv)
    assert (done.status, done.out) == (130, "")
    assert done.err == f"intarsia: stopped; the same command goes on behind the answers in {out}\n"
    done = cli(*argv)
    assert (done.status, done.err) == (0, "11 answers, 4 stood there already\n")


def test_a_batch_has_as_many_rows_as_is_said(there, cli, monkeypatch):
    data = write(there / "rows.csv", [{"text": t} for t in TEXTS])
    seen, call = [], TaskBank.__call__
    monkeypatch.setattr(TaskBank, "__call__", lambda bank, *given, **more: seen.append(1) or call(bank, *given, **more))
    argv = ("predict", "--tasks", there / "tasks", "--data", data, "--device", "cpu", "--dtype", "float32")
    done = cli(*argv, "--batch-size", 1)
    assert done.status == 0, done.err
    assert len(done.lines()) == 15
    assert len(seen) >= 15
    refused = cli(*argv, "--split", "train")
    assert refused.status == 2
    assert refused.err.startswith("intarsia: --split is for TASK_DIR")


def test_what_cannot_be_answered_is_said_in_one_line(there):
    cases = [
        ([{"task": "mod", "text": "good"}], DataError, "did you mean 'mood'"),
        ([{"sentence": "good"}], DataError, "no column 'text'"),
    ]
    for rows, error, words in cases:
        with pytest.raises(error, match=words):
            predict_folder(there / "tasks", write(there / "rows.csv", rows), None)
    (there / "empty").mkdir()
    with pytest.raises(TaskError, match="no task folder"):
        predict_folder(there / "empty", there / "rows.csv", None)
    with pytest.raises(ConfigError, match="must be a folder"):
        predict_folder(there / "none", there / "rows.csv", None)


def test_a_row_that_fails_has_its_error_in_its_line(there):
    data = write(there / "rows.csv", [{"task": "mood", "text": t} for t in ("good", " ", "fine")])
    ended = predict_folder(there / "tasks", data, there / "out.jsonl", dtype="float32")
    assert (ended.answered, ended.failed) == (2, 1)
    assert "empty" in lines(there / "out.jsonl")[1]["error"]


def test_answers_to_other_texts_are_not_gone_on_with(there):
    data, out = write(there / "rows.csv", [{"text": t} for t in TEXTS]), there / "out.jsonl"
    predict_folder(there / "tasks", data, out, dtype="float32")
    before = out.read_text()
    assert lines(out)[0]["text"] == ["good film"]
    write(data, [{"text": t} for t in [TEXTS[0], "an edited text", *TEXTS[2:]]])
    with pytest.raises(ConfigError, match="line 4 is not of this file"):
        predict_folder(there / "tasks", data, out, dtype="float32")
    assert out.read_text() == before


@pytest.mark.parametrize("content", ["my notes, without a line break", "a line\nand half of one", "{}\n"])
def test_a_file_that_is_no_earlier_run_stays_as_it_is(there, content):
    data, out = write(there / "rows.csv", [{"text": t} for t in TEXTS]), there / "notes.txt"
    out.write_text(content)
    with pytest.raises(ConfigError, match="line 1 is not of this file"):
        predict_folder(there / "tasks", data, out, dtype="float32")
    assert out.read_text() == content


def test_what_is_no_text_is_no_prompt(there):
    data = there / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("good", ["good", "film"], 5, None)))
    ended = predict_folder(there / "tasks", data, there / "out.jsonl", dtype="float32")
    assert (ended.answered, ended.failed) == (3, 9)
    found = [line.get("error") for line in lines(there / "out.jsonl") if line["task"] == "mood"]
    assert found[0] is None
    assert "is no text, but of type list" in found[1]
    assert "is no text, but of type int" in found[2]
    assert "empty" in found[3]
    data.write_text(json.dumps({"text": "good", "task": ["mood", "spam"]}) + "\n")
    with pytest.raises(DataError, match="no task \\['mood', 'spam'\\]"):
        predict_folder(there / "tasks", data, None, dtype="float32")


def test_a_task_that_writes_with_beams_is_asked_alone(tmp_path):
    backbone = Backbone.load(str(make_decoder(tmp_path / "backbone")), dtype="float32")
    task = Task.new("words", backbone, LoRA(rank=2), Head(kind="generation"))
    task.data = {"text_columns": ["text"], "generation": {"beams": 3, "max_new_tokens": 4}}
    task.save(tmp_path / "tasks" / "words")
    data = write(tmp_path / "rows.csv", [{"text": t} for t in TEXTS])
    with pytest.raises(ConfigError, match="writes with 3 beams"):
        predict_folder(tmp_path / "tasks", data, None, dtype="float32")
