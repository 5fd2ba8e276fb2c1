"""Prompt ensembling: how the votes are counted, and that one forward pass says what each task alone would say."""

import dataclasses

import numpy as np
import pytest

from intarsia.backbone import Backbone
from intarsia.errors import ConfigError, TaskError
from intarsia.heads import Head
from intarsia.methods import PromptTuning
from intarsia.task import Task
from intarsia.workflow import evaluate, predict
from intarsia.workflow.ensemble import majority, majority_text, mean
from workflow.tiny_run import train_arguments

SEEDS = (1, 2, 3)


def test_most_votes_win_against_the_higher_mean():
    scores = np.array([[0.6, 0.4], [0.6, 0.4], [0.0, 1.0]])
    winner, shares = majority(scores)
    assert winner == 0
    assert shares.tolist() == pytest.approx([2 / 3, 1 / 3])
    winner, means = mean(scores)
    assert winner == 1
    assert means.tolist() == pytest.approx([0.4, 0.6])


def test_a_tie_goes_to_the_higher_sum_and_then_to_the_first():
    assert majority(np.array([[0.6, 0.4, 0.0], [0.1, 0.9, 0.0]]))[0] == 1
    assert majority(np.array([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0]]))[0] == 0
    assert majority(np.array([[0.2, 0.8], [0.8, 0.2]]))[0] == 0


def test_the_higher_sum_of_a_class_without_most_votes_wins_nothing():
    scores = np.array([[0.0, 0.5, 0.5], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.4, 0.3, 0.3]])
    assert majority(scores[:, [2, 1, 0]])[0] == 2, "two votes each: of 2 and 0, the sum decides; 1 has none"


def test_the_commonest_text_wins_and_of_equal_ones_the_first():
    assert majority_text(["b", "a", "a"]) == "a"
    assert majority_text(["b", "a", "c"]) == "b"


@pytest.fixture(scope="module")
def folders(backbone, files, tmp_path_factory):
    """Three prompts for one backbone, of different seeds and lengths."""
    from intarsia.cli.__main__ import main

    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTARSIA_CACHE", str(tmp_path_factory.mktemp("cache")))
        for seed in SEEDS:
            out = tmp_path_factory.mktemp("runs") / "mood"
            given = [*train_arguments(backbone, files)[:-8], "--method", "prompt", "--set", f"method.length={seed + 1}"]
            assert (
                main(
                    [
                        *given,
                        "--device",
                        "cpu",
                        "--dtype",
                        "float32",
                        "--seed",
                        str(seed),
                        "--max-steps",
                        "6",
                        "--out",
                        str(out),
                    ]
                )
                == 0
            )
            found.append(out)
    return found


@pytest.mark.parametrize("combine", ["majority", "mean"])
def test_a_vote_is_of_what_each_task_says_alone(folders, files, combine):
    rows = str(files["test"])
    together = predict(folders, data=rows, combine=combine, device="cpu", dtype="float32")
    alone = [predict(one, data=rows, device="cpu", dtype="float32") for one in folders]
    assert len(together) == 32
    for row, answer in enumerate(together):
        said = np.array([list(one[row].scores.values()) for one in alone])
        winner, shares = {"majority": majority, "mean": mean}[combine](said)
        assert answer.prediction == winner
        assert list(answer.scores.values()) == pytest.approx(shares.tolist(), abs=1e-5)


def test_evaluation_gives_the_vote_and_each_task(folders, files):
    rows = str(files["test"])
    found = evaluate(folders, rows, combine="mean", device="cpu", dtype="float32")
    assert list(found.members) == ["mood", "mood (2)", "mood (3)"]
    for folder, metrics in zip(folders, found.members.values(), strict=True):
        assert metrics["accuracy"] == evaluate(folder, rows, device="cpu", dtype="float32").metrics["accuracy"]
    answers = predict(folders, data=rows, combine="mean", device="cpu", dtype="float32")
    lines = [line for line in files["test"].read_text().splitlines()[1:] if line]
    right = [line.endswith("," + answer.label) for line, answer in zip(lines, answers, strict=True)]
    assert found.metrics["accuracy"] == pytest.approx(sum(right) / len(right))


def test_tasks_that_answer_otherwise_cannot_vote(folders, backbone, tmp_path):
    loaded = Backbone.load(str(backbone), dtype="float32", device="cpu")
    other = Task.new("other", loaded, PromptTuning(length=2), Head(kind="regression"))
    other.save(tmp_path / "other")
    with pytest.raises(
        TaskError, match="task 2 answers regression without labels, the first classification with labels"
    ):
        predict([folders[0], tmp_path / "other"], ["good"], combine="mean", backbone=loaded)


def test_one_forward_pass_answers_for_all(folders, monkeypatch):
    from intarsia.backbone import Backbone

    calls = []
    features = Backbone.features
    monkeypatch.setattr(
        Backbone, "features", lambda self, batch: calls.append(len(batch["input_ids"])) or features(self, batch)
    )
    predict(folders, ["good", "a bad film"], combine="majority", device="cpu")
    assert calls == [6]


def test_generated_labels_vote_by_text(cli, decoder, files, tmp_path):
    given = ("--kind", "generation", "--set", "data.text_to_text=true", "--device", "cpu", "--dtype", "float32")
    outs = [tmp_path / str(seed) for seed in SEEDS]
    for seed, out in zip(SEEDS, outs, strict=True):
        argv = (
            "--backbone",
            decoder,
            "--train",
            files["train"],
            *given,
            "--method",
            "prompt",
            "--seed",
            seed,
            "--max-steps",
            1,
        )
        done = cli("train", *argv, "--out", out)
        assert done.status == 0, done.err
    together = cli("predict", *outs, "--data", files["test"], "--combine", "majority")
    assert together.status == 0, together.err
    alone = [cli("predict", out, "--data", files["test"]).lines() for out in outs]
    for row, line in enumerate(together.lines()):
        assert line["prediction"] == majority_text([one[row]["prediction"] for one in alone])
    table = cli("evaluate", *outs, "--data", files["test"], "--combine", "majority")
    assert table.status == 0, table.err
    assert "each task alone" in table.out
    assert "probabilities" in cli("evaluate", *outs, "--data", files["test"], "--combine", "mean").err


def test_tasks_that_cannot_vote_are_refused(folders, files, tmp_path):
    with pytest.raises(ConfigError, match="--combine majority"):
        predict(folders, ["good"])
    with pytest.raises(ConfigError, match="one folder is given"):
        predict(folders[0], ["good"], combine="mean")
    with pytest.raises(ConfigError, match="majority, mean"):
        predict(folders, ["good"], combine="median")
    task = Task.load(folders[0])
    assert task.head is not None
    task.head = dataclasses.replace(task.head, labels=("bad", "good"))
    task.save(tmp_path / "other")
    with pytest.raises(TaskError, match="same labels"):
        predict([folders[0], tmp_path / "other"], ["good"], combine="mean")
    task = Task.load(folders[0])
    task.data["text_columns"] = ["text", "other"]
    task.save(tmp_path / "pairs")
    with pytest.raises(TaskError, match=r"reads 2 text\(s\) per row, the first 1"):
        predict([folders[0], tmp_path / "pairs"], ["good"], combine="mean")


@pytest.mark.parametrize("kind", ["token-classification", "multi-label", "regression"])
def test_tasks_of_other_kinds_cannot_vote_and_are_called_by_their_kind(backbone, tmp_path, kind):
    labels = () if kind == "regression" else ("bad", "good")
    loaded = Backbone.load(str(backbone), dtype="float32")
    task = Task.new("one", loaded, PromptTuning(length=2), Head(kind=kind, labels=labels))
    task.save(tmp_path / "one")
    with pytest.raises(ConfigError, match=f"only tasks with one label a row can vote, .*; got {kind}$"):
        predict([tmp_path / "one", tmp_path / "one"], ["good"], combine="mean", backbone=loaded)


def test_a_vote_on_a_long_text_has_room_for_every_prompt(folders):
    # With the shortest prompt's room the longest one's rows would end behind the backbone's positions.
    text = "good film " * 40
    one, other = (predict(order, [text], combine="mean")[0] for order in (folders, folders[::-1]))
    assert one.scores == pytest.approx(other.scores, abs=1e-6)
