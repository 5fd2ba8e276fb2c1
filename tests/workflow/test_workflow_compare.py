"""A comparison from its settings to its choice: in made-up time, killed again and again, and once with real runs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from intarsia.backbone import Backbone
from intarsia.data import Encoded, EncodedSource
from intarsia.errors import ConfigError
from intarsia.task import Task
from intarsia.workflow.compare import compare, probing, testing
from intarsia.workflow.compare.settings import from_mapping
from intarsia.workflow.reading import scored_together
from workflow.compare_standins import FakePack, ledger_lines, score


def test_the_best_method_at_its_best_rate_is_chosen(settings, loaded, clock):
    pack = FakePack(score, clock)
    found = compare(settings(), backbone=loaded, packs=pack)
    assert (found.best.family, found.best.learning_rate) == ("lora", 1e-3)
    assert [row.family for row in found.finals] == ["lora", "full", "adapter", "prompt"]
    assert [sorted(row.validation) for row in found.finals] == [[1, 2, 3]] * 4
    assert [sorted(row.test) for row in found.finals] == [[1, 2, 3]] * 4
    shipped = Task.load(settings().base.out / "best", loaded)
    assert shipped.method.name == "lora"
    assert set(shipped.metrics) >= {"accuracy", "test_accuracy"}


def test_every_search_run_has_one_seed_and_every_final_run_a_fresh_one(settings, loaded, clock, unscored):
    compare(settings(seeds=2), backbone=loaded, packs=FakePack(score, clock))
    seeds = {True: set(), False: set()}
    for line in ledger_lines(settings().base.out):
        if line["event"] == "run":
            seeds[line["stage"] == "final"].add(line["seed"])
    assert seeds == {True: {1, 2}, False: {0}}


def test_the_test_split_is_not_scored_before_the_choice(settings, loaded, clock, monkeypatch):
    out, seen = settings().base.out, []
    scored = testing._scored

    def watching(task, backbone, rows, **more):
        seen.append((len(rows), [line["event"] for line in ledger_lines(out)].count("choice")))
        return scored(task, backbone, rows, **more)

    monkeypatch.setattr(testing, "_scored", watching)
    compare(settings(), backbone=loaded, packs=FakePack(score, clock))
    assert seen == [(32, 1)] * len(seen)  # the test split has 32 rows
    assert len(seen) == 12
    events = [line["event"] for line in ledger_lines(out)]
    assert events.index("test") > events.index("choice") > max(i for i, e in enumerate(events) if e == "run")


@pytest.mark.parametrize(("budget", "slower"), [(80, 1.0), (80, 1.6), (200, 1.0), (600, 0.7), (600, 1.6), (3000, 1.0)])
def test_the_budget_is_kept_when_runs_become_slower_than_their_probes(
    settings, loaded, clock, unscored, budget, slower
):
    """The probes run at the speed they saw; everything after is slower or faster."""
    pack, given = FakePack(score, clock), settings(budget=float(budget), train={"epochs": 300})

    def changing(runs, **more):
        pack.slower = slower if "probe" not in str(runs[0].out) else 1.0
        return pack(runs, **more)

    found = compare(given, backbone=loaded, packs=changing)
    assert found.spent <= budget
    assert found.best.final
    assert found.spent > 0.5 * budget, "time that was given is used"


def test_what_the_deadline_cuts_short_is_said_and_not_counted(settings, loaded, clock, unscored):
    pack = FakePack(score, clock)

    def stalling(runs, **more):
        pack.slower = 8.0 if "final-2" in str(runs[0].name) else 1.0
        return pack(runs, **more)

    found = compare(settings(budget=300.0, train={"epochs": 300}), backbone=loaded, packs=stalling)
    assert found.spent <= 300
    assert found.cut
    assert all(name.startswith("final-2") for name in found.cut)
    assert all(2 not in row.validation for row in found.finals)
    assert "Cut short by the budget" in (settings().base.out / "report.md").read_text()


def test_a_run_that_diverges_is_reported_and_the_others_go_on(settings, loaded, clock, unscored):
    def diverging(run):
        return None if run.method["name"] == "prompt" or run.train.learning_rate == 4e-3 else score(run)

    found = compare(settings(), backbone=loaded, packs=FakePack(diverging, clock))
    assert found.best.family == "lora"
    assert {event["shape"] for event in found.left_out} == {"prompt length 3"}  # its probe failed already
    assert {event["candidate"] for event in found.failed} == {"lora rank 2 lr 0.004", "lora rank 4 lr 0.004"}
    page = (settings().base.out / "report.md").read_text()
    assert "the loss is nan at step 3" in page


def test_a_method_that_needs_too_much_memory_is_left_out(settings, loaded, clock, unscored):
    pack = FakePack(score, clock)

    def short(runs, **more):
        if any(run.method["name"] == "full" for run in runs):
            raise torch.OutOfMemoryError
        return pack(runs, **more)

    found = compare(settings(), backbone=loaded, packs=short)
    assert [(event["shape"], event["why"]) for event in found.left_out] == [
        ("full", "it needs more memory than there is")
    ]
    assert found.best.family == "lora"
    assert found.baseline is None


def test_where_every_run_fails_the_error_says_why(settings, loaded, clock):
    with pytest.raises(ConfigError, match="the loss is nan"):
        compare(settings(), backbone=loaded, packs=FakePack(lambda run: None, clock))


def test_a_search_scores_no_test_split_before_the_choice(settings, loaded, clock, unscored):
    """The settings name a test file, which `train` would score at each run's end."""
    asked = []
    pack = FakePack(score, clock)

    def noting(runs, **more):
        asked.append(more["score_test"])
        return pack(runs, **more)

    compare(settings(methods={"lora": {"sizes": [2]}}, seeds=1), backbone=loaded, packs=noting)
    assert asked
    assert not any(asked)


def test_a_gpu_scores_rows_in_larger_batches_than_it_is_trained_with():
    def batches(device, lengths):
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        encoded = Encoded(
            "classification", np.zeros(offsets[-1], int), offsets, None, None, np.zeros(len(lengths)), 0, 0
        )
        source = EncodedSource(encoded, 32, pad_id=0)
        return scored_together(source, SimpleNamespace(device=torch.device(device))).plan(0)

    assert [len(rows) for rows in batches("cuda", [100] * 400)] == [163, 163, 74]
    assert [len(rows) for rows in batches("cuda", [4000] * 40)] == [32, 8]  # as many as a step has, at least
    assert [len(rows) for rows in batches("cpu", [100] * 70)] == [32, 32, 6]


def test_a_method_that_the_backbone_cannot_do_is_left_out(decoder, files, tmp_path, clock, monkeypatch):
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))
    given = from_mapping(
        {
            "backbone": str(decoder),
            "data": {name: str(path) for name, path in files.items()},
            "methods": {"lora": {"sizes": [2]}, "adapter": {"sizes": [2], "settings": {"leave_out": [0, 1]}}},
            "device": "cpu",
            "out": str(tmp_path / "out"),
        }
    )
    found = compare(given, packs=FakePack(lambda run: 0.5, clock))
    assert "every layer is left out" in found.left_out[0]["why"]
    assert {row.family for row in found.rows} == {"lora"}


def test_packs_are_cut_to_the_memory_there_is(settings, loaded, clock, unscored, monkeypatch):
    monkeypatch.setattr(probing, "_status", lambda name, *_: {"VmHWM": 900, "VmRSS": 600, "MemAvailable": 1000}[name])
    pack = FakePack(score, clock)
    compare(settings(seeds=1), backbone=loaded, packs=pack)
    assert {len(names) for names in pack.packs if names != ["probe"]} == {2, 1}  # 300 bytes each, and 800 may be taken


def test_real_runs_end_to_end(settings, loaded):
    """Real packs; small, and without a budget."""
    given = settings(methods={"head": {"learning_rates": [5e-2, 1e-3]}}, seeds=2, train={"epochs": 2})
    found = compare(given, backbone=loaded)
    out = given.base.out
    (best,) = found.finals
    assert best is found.best
    assert [(row.stage, row.steps) for row in found.rows if not row.final] == [("search 1", 6)]
    for name, seed in zip(best.runs, sorted(best.validation), strict=True):
        recorded = json.loads((out / "runs" / name / "run.json").read_text())
        assert recorded["result"]["best"] == best.validation[seed]
        assert recorded["run"]["train"]["seed"] == seed
        assert recorded["run"]["train"]["max_steps"] == 6
    assert Task.load(out / "best", loaded).metrics["accuracy"] == max(best.validation.values())
    left = ["best", "ledger.jsonl", "plots", "report.html", "report.md", "runs"]
    assert sorted(path.name for path in out.iterdir()) == left
    assert sum(map(sum, found.answers["confusion"])) == 32


KINDS = {
    "generation": ({"kind": "generation"}, [("good film", ["it was good"]), ("bad film", ["it was bad"])]),
    "regression": ({"kind": "regression"}, [("good film", 1.5), ("bad film", -1.0)]),
    "multi-label": ({"kind": "multi-label", "labels": ("a", "b")}, [("good film", [1, 0]), ("bad film", [0, 1])]),
    "token-classification": ({"kind": "token-classification", "labels": ("O", "B-X")}, [(("good", "a"), [1, 0]), (("bad",), [0])]),
    "classification": ({"kind": "classification", "labels": ("neg", "pos")}, [("good film", 1), ("bad film", 0)]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_of_every_kind_of_task_are_shown(kind, backbone, decoder, monkeypatch, tmp_path):
    from intarsia.data import Rows
    from intarsia.heads import Head
    from intarsia.methods import LoRA

    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))
    fields, pairs = KINDS[kind]
    model = Backbone.load(str(decoder if kind == "generation" else backbone), dtype="float32", device="cpu")
    rows = Rows([text if isinstance(text, tuple) else (text,) for text, _ in pairs], [label for _, label in pairs])
    task = Task.new("one", model, LoRA(rank=2), Head(**fields))
    task.data = {"text_columns": ["text"], "max_length": 24, "target_length": 6, "generation": {"max_new_tokens": 4}}
    if kind != "generation":
        task.data = {"text_columns": ["text"], "max_length": 24}
    metrics, answers = testing._scored(task, model, rows, with_answers=True)
    assert "loss" in metrics
    if kind in ("classification", "token-classification"):
        assert sum(map(sum, answers["confusion"])) == (3 if kind == "token-classification" else 2)
        return
    assert [one["text"] for one in answers["samples"]] == ["good film", "bad film"]
    expected = {"generation": "it was good", "regression": "1.5", "multi-label": "a"}[kind]
    assert answers["samples"][0]["expected"] == expected
    assert all(isinstance(one["answered"], str) for one in answers["samples"])
