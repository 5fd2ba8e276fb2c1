"""Generation from a file to text: free text, labels as words, templates with slots, and a verbaliser."""

import json

import pytest

from intarsia.workflow import evaluate, predict
from workflow.tiny_run import sentences, write_csv

MOOD = ("--set", "data.label_words={pos: good, neg: bad}")


@pytest.fixture
def pairs(tmp_path):
    """Texts, and what is to be said of each; every text twice, with two references."""
    rows = [
        (text, f"a {mood} film")
        for text, label in sentences(24)
        for mood in ({"pos": "good", "neg": "bad"}[label], label)
    ]
    return write_csv(tmp_path / "pairs.csv", rows, ("mr", "ref"))


def run(cli, backbone, out, train, *more):
    given = ("--backbone", backbone, "--train", train, "--device", "cpu", "--dtype", "float32", "--out", out)
    done = cli("train", *given, *more)
    assert done.status == 0, done.err
    return done


def test_targets_that_are_longer_than_what_will_be_written_are_counted(cli, encoder_decoder, tmp_path):
    rows = [("a film", " ".join(["good"] * count)) for count in (1, 5, 6, 7, 8)]
    train = write_csv(tmp_path / "rows.csv", rows, ("mr", "ref"))
    kind = (
        "--kind",
        "generation",
        "--text-columns",
        "mr",
        "--label-column",
        "ref",
        "--max-steps",
        1,
        "--method",
        "lora",
    )
    given = (*kind, "--validation", train)
    few = run(cli, encoder_decoder, tmp_path / "few", train, *given, "--set", "generation.max_new_tokens=6")
    assert "training: 2 of 5 targets are longer than generation.max_new_tokens, 6\n" in few.err
    enough = run(cli, encoder_decoder, tmp_path / "enough", train, *given, "--set", "generation.max_new_tokens=8")
    assert "are longer than" not in enough.err


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("method", ["prefix", "prompt", "adapter"])
def test_free_text_goes_from_file_to_text(cli, request, pairs, tmp_path, family, method):
    out = tmp_path / "out"
    backbone = request.getfixturevalue(family)
    more = ("--set", "method.mid=8") if method == "prefix" else ()
    given = ("--kind", "generation", "--text-columns", "mr", "--label-column", "ref", "--max-steps", 2)
    done = run(cli, backbone, out, pairs, *given, "--method", method, *more, "--validation", pairs)
    assert "48 rows, 24 distinct inputs" in done.err
    assert "validation loss" in done.out
    (found,) = cli("evaluate", out, "--data", pairs, "--json").lines()
    assert found["rows"] == 24
    assert {"loss", "bleu", "chrf", "rouge_l"} <= found["metrics"].keys()
    one, two = cli("predict", out, "--text", "a good film", "--text", "the book", "--max-new-tokens", 3).lines()
    assert len(one["prediction"].split()) <= 3
    assert (one["label"], one["scores"], two["text"]) == (None, None, ["the book"])
    beams = cli("predict", out, "--data", pairs, "--beams", 3, "--length-penalty", 0.5)
    assert beams.status == 0, beams.err
    assert len(beams.lines()) == 48
    for option, reason in (
        ("--temperature", "none is drawn"),
        ("--top-p", "none is drawn"),
        ("--length-penalty", "one beam"),
    ):
        idle = cli("predict", out, "--text", "a film", option, 0.5)
        assert (idle.status, reason in idle.err) == (2, True), idle.err
    assert cli("predict", out, "--text", "a film", "--temperature", 1, "--top-p", 1).status == 0


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_labels_as_words_are_learnt_and_scored(cli, request, files, tmp_path, family):
    out = tmp_path / "out"
    backbone = request.getfixturevalue(family)
    given = (
        "--kind",
        "generation",
        "--set",
        "data.text_to_text=true",
        *MOOD,
        "--method",
        "full",
        "--validation",
        files["validation"],
    )
    run(cli, backbone, out, files["train"], *given, "--epochs", 20, "--lr", 5e-3)
    task = json.loads((out / "task.json").read_text())
    assert task["head"]["labels"] == ["bad", "good"]
    assert task["data"]["generation"]["max_new_tokens"] == task["data"]["target_length"] == 2
    assert task["metrics"]["exact_match"] >= 0.9, task["metrics"]
    (found,) = cli("evaluate", out, "--data", files["test"], "--json").lines()
    assert found["metrics"]["exact_match"] >= 0.9
    assert found["metrics"].keys() == {"exact_match", "macro_f1", "illegal", "loss"}
    (answer,) = cli("predict", out, "--text", "the film was great").lines()
    assert (answer["prediction"], answer["label"]) == ("good", "good")


def test_a_text_that_is_no_label_is_said_to_be_none(cli, decoder, files, tmp_path):
    out = tmp_path / "out"
    given = ("--kind", "generation", "--set", "data.text_to_text=true", "--method", "prompt", "--max-steps", 1)
    run(cli, decoder, out, files["train"], *given)
    answers = cli("predict", out, "--data", files["test"]).lines()
    assert len(answers) == 32
    for line in answers:
        assert line["label"] == (line["prediction"] if line["prediction"] in ("pos", "neg") else None)


def test_slots_of_a_template_are_filled_by_the_prompt(cli, backbone, files, tmp_path):
    out = tmp_path / "out"
    given = ("--template", "{prompt:2} {text} was {prompt}", "--method", "ptuning")
    run(
        cli,
        backbone,
        out,
        files["train"],
        *given,
        "--set",
        "method.place=template",
        "--set",
        "method.length=3",
        "--max-steps",
        2,
    )
    task = json.loads((out / "task.json").read_text())
    assert task["data"]["template"] == "{prompt:2} {text} was {prompt}"
    assert task["data"]["max_length"] == 32, "slots stand in the row, and take no room beside it"
    (found,) = cli("evaluate", out, "--data", files["test"], "--json").lines()
    lines = cli("predict", out, "--data", files["test"]).lines()
    rows = [line.rsplit(",", 1) for line in files["test"].read_text().split("\n")[1:] if line]
    right = [line["label"] == row[1].strip() for line, row in zip(lines, rows, strict=True)]
    assert found["metrics"]["accuracy"] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("words", ["[poor, great]", "{pos: great, neg: poor}"])
def test_a_verbaliser_reads_the_masked_language_model(cli, masked, files, tmp_path, words):
    out = tmp_path / "out"
    given = ("--template", "{text} was {mask}", "--set", f"head.verbaliser={words}", "--method", "full")
    run(cli, masked, out, files["train"], *given, "--epochs", 15, "--lr", 5e-3)
    task = json.loads((out / "task.json").read_text())
    assert task["head"]["verbaliser"] == ["poor", "great"]
    assert not any(name.startswith("head") for name in task["tensors"])
    assert task["metrics"]["accuracy"] > 0.7
    (answer,) = cli("predict", out, "--text", "the film was good").lines()
    assert set(answer["scores"]) == {"neg", "pos"}


def test_a_template_of_three_fields_takes_three_texts_a_row(cli, backbone, tmp_path):
    rows = [(text, "film", text, label) for text, label in sentences(30)]
    file = write_csv(tmp_path / "rows.csv", rows, ("first", "second", "third", "label"))
    out = tmp_path / "out"
    given = ("--template", "{first} {third} was {second}", "--label-column", "label", "--method", "head")
    run(cli, backbone, out, file, *given, "--max-steps", 1)
    lines = cli("predict", out, *(part for text in "abcdef" for part in ("--text", text))).lines()
    assert [line["text"] for line in lines] == [["a", "b", "c"], ["d", "e", "f"]]
    assert cli("evaluate", out, "--data", file).status == 0


@pytest.mark.parametrize(
    ("method", "changes", "left"),
    [
        ("prompt", (), 12),
        ("ptuning", ("--set", "method.insert_at=embedding_output"), 32),
        ("prefix", ("--set", "method.mid=8"), 32),
        ("prefix", ("--set", "method.mid=8", "--set", "method.position_offset=true"), 12),
    ],
)
def test_a_prompt_takes_its_positions_from_the_rows(cli, backbone, files, tmp_path, method, changes, left):
    out = tmp_path / "out"
    given = ("--method", method, "--set", "method.length=20", *changes, "--max-steps", 1)
    done = run(cli, backbone, out, files["train"], *given)
    assert json.loads((out / "task.json").read_text())["data"]["max_length"] == left
    long = " ".join(["film"] * 40)
    assert cli("predict", out, "--text", long).status == 0, done.err


def test_the_same_from_python_with_settings_changed_for_one_call(cli, decoder, pairs, tmp_path):
    out = tmp_path / "out"
    given = ("--kind", "generation", "--template", "{mr} was", "--label-column", "ref", "--method", "prefix")
    run(cli, decoder, out, pairs, *given, "--max-steps", 1, "--set", "method.mid=8", "--set", "head.loss=sentence")
    assert json.loads((out / "task.json").read_text())["head"]["loss"] == "sentence"
    found = evaluate(out, str(pairs), generation={"max_new_tokens": 2, "lowercase": True})
    assert 0 <= found.metrics["bleu"] <= 100
    drawn = [predict(out, ["a film"], generation={"sample": True, "seed": 1})[0].prediction for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_a_metric_of_text_can_name_the_best_weights(cli, decoder, pairs, tmp_path):
    out = tmp_path / "out"
    given = ("--kind", "generation", "--text-columns", "mr", "--label-column", "ref", "--method", "lora")
    run(cli, decoder, out, pairs, *given, "--max-steps", 2, "--set", "train.metric=bleu", "--validation", pairs)
    record = json.loads((out / "run.json").read_text())["result"]
    assert record["metric"] == "bleu"
    assert record["best"] == pytest.approx(evaluate(out, str(pairs), batch_size=16).metrics["bleu"])
