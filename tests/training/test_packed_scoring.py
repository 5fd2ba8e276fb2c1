"""Validation of a pack in shared passes: each member's scores are those that it gets alone."""

import numpy as np
import pytest
import torch

from intarsia.errors import DataError
from intarsia.heads import Head
from intarsia.methods import BottleneckAdapter, LayerNormTuning, LoRA, PrefixTuning, PromptTuning
from intarsia.training import Entry, fit_pack, loop
from intarsia.training.checkpoint import snapshot
from intarsia.training.evaluation import evaluate
from intarsia.training.packed import scoring
from intarsia.training.packed.stepper import PackedStepper
from training.test_packed import backbone_of, encoded, members_of, pack, pairs, source_of

MIXED = (
    BottleneckAdapter(width=5),
    BottleneckAdapter(width=5),
    LoRA(rank=3),
    PrefixTuning(length=3, mid=None, init_std=0.5),
    PromptTuning(length=4, init="uniform", place="after-first"),
    LayerNormTuning(),
)
HEADS = {
    "classification": Head(labels=("a", "b", "c"), dropout=0.5),
    "mean": Head(labels=("a", "b", "c"), pooling="mean"),
    "multi-label": Head(labels=("a", "b", "c"), kind="multi-label"),
    "regression": Head(kind="regression"),
    "token-classification": Head(labels=("O", "A", "B"), kind="token-classification"),
    "generation": Head(kind="generation"),
    "generation by sentence": Head(kind="generation", loss="sentence"),
}
TOL = {"rel": 1e-7, "abs": 1e-10}
"""Scores of words are fp32, whatever the model computes in."""


def members(family, head, folder, sizes, monkeypatch, methods=MIXED):
    """A pack whose members have validation rows of their own, so many each."""
    methods = methods[: len(sizes)]
    bank, entries = pack(backbone_of(family), methods, [head] * len(methods), folder)
    found = members_of(bank, entries)
    for number, (member, size) in enumerate(zip(found, sizes, strict=True)):
        member.validation = source_of(head, number)
        rows = {"rows": size, "seed": 50 + number}
        member.validation.encoded = pairs(**rows) if head.kind == "generation" else encoded(head.kind, **rows)
        member.settings = member.settings.model_copy(update={"metric": "loss", "evaluate_every": 1})
        member.state.step, member.state.evaluated_at = 1, -1
    monkeypatch.setattr(scoring, "_LARGER", 1)  # several passes
    return found


def calls_of(monkeypatch):
    """How many passes were shared."""
    calls, one = [], scoring.Scoring._answers
    monkeypatch.setattr(scoring.Scoring, "_answers", lambda self, layout: calls.append(1) or one(self, layout))
    return calls


def check(stepper, alone):
    for member in stepper.members:
        found = stepper.evaluate(member, lambda: None)
        assert found.metrics == pytest.approx(alone[member].metrics, **TOL)
        assert len(found.predictions) == len(alone[member].predictions)


@pytest.mark.parametrize("kind", HEADS)
def test_members_are_scored_together_as_alone(kind, tmp_path, monkeypatch):
    family = "llama" if kind.startswith("generation") else "bert"
    pack = members(family, HEADS[kind], tmp_path, (31, 9, 40, 22, 17, 1), monkeypatch)
    alone = {member: member.scores(lambda: None) for member in pack}
    stepper, calls = PackedStepper(pack), calls_of(monkeypatch)
    check(stepper, alone)
    assert 1 < len(calls) < 25
    # After a step the scores are others; nothing is remembered, and dropout is on again where it was.
    for _ in range(2):
        stepper.step()
    again = {member: member.scores(lambda: None) for member in pack}
    assert all(again[member].metrics["loss"] != alone[member].metrics["loss"] for member in pack)
    check(stepper, again)
    assert all(task.training for task, _ in stepper.tasks)


def test_words_of_every_row_come_back_to_their_row(tmp_path, monkeypatch):
    """Entities are scored by row: a metric that joins the words of two rows would differ."""
    pack = members("bert", HEADS["token-classification"], tmp_path, (30, 30), monkeypatch)
    pack[1].validation.encoded.labels[:7] = -100  # a whole row without labelled words, at least
    alone = {member: member.scores(lambda: None) for member in pack}
    stepper = PackedStepper(pack)
    for member in pack:
        found = stepper.evaluate(member, lambda: None)
        offsets = member.validation.encoded.offsets
        rows = np.concatenate(member.validation.plan(0))
        for row, own, want in zip(rows, found.predictions, alone[member].predictions, strict=True):
            kept = member.validation.encoded.labels[offsets[row] : offsets[row + 1]] != -100
            assert own[: kept.sum()].tolist() == want[: len(kept)][kept].tolist()


def test_few_that_are_due_and_those_that_write_text_are_scored_alone(tmp_path, monkeypatch):
    pack = members("bert", HEADS["classification"], tmp_path, (9, 9, 9, 9), monkeypatch)
    stepper, calls = PackedStepper(pack), calls_of(monkeypatch)
    for member in pack[1:]:
        member.state.evaluated_at = 1
    want = pack[0].scores(lambda: None).metrics
    assert stepper.evaluate(pack[0], lambda: None).metrics == want
    assert not calls


def test_rows_without_labels_are_said_by_their_own_member(tmp_path, monkeypatch):
    pack = members("bert", HEADS["classification"], tmp_path, (9, 9, 9), monkeypatch)
    object.__setattr__(pack[1].validation.encoded, "labels", None)
    stepper = PackedStepper(pack)
    want = pack[0].scores(lambda: None).metrics
    assert stepper.evaluate(pack[0], lambda: None).metrics == pytest.approx(want, **TOL)
    with pytest.raises(DataError, match="evaluation needs labels"):
        stepper.evaluate(pack[1], lambda: None)


def test_what_is_wrong_with_one_members_answers_concerns_no_other(tmp_path, monkeypatch):
    pack = members("bert", HEADS["classification"], tmp_path, (9, 9, 9), monkeypatch)
    want = {member: member.scores(lambda: None) for member in pack}
    stepper, measured = PackedStepper(pack), scoring.measured

    def picky(task, answered):
        if task is pack[1].task:
            raise DataError("no such label")
        return measured(task, answered)

    monkeypatch.setattr(scoring, "measured", picky)
    check(stepper, want)  # the second one alone, where nothing is wrong


def test_where_memory_is_short_each_is_scored_alone(tmp_path, monkeypatch):
    pack = members("bert", HEADS["classification"], tmp_path, (9, 9, 9), monkeypatch)
    stepper = PackedStepper(pack)

    def full(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(scoring.Scoring, "_answers", full)
    want = {member: member.scores(lambda: None) for member in pack}
    check(stepper, want)
    assert all(task.training for task, _ in stepper.tasks)


def test_those_that_end_are_tested_together_with_their_best_weights(tmp_path, monkeypatch):
    pack = members("bert", HEADS["classification"], tmp_path, (9, 9, 9, 9), monkeypatch)
    stepper, calls = PackedStepper(pack), calls_of(monkeypatch)
    best = {member: snapshot(member.task.tensors()) for member in pack}
    for member in pack[:3]:
        member.best = best[member]
    for number, member in enumerate(pack[:3]):
        member.test = source_of(HEADS["classification"], 70 + number)
    for _ in range(2):
        stepper.step()
    moved = snapshot(pack[3].task.tensors())
    stepper.test(pack[:3])
    assert calls
    for member in pack[:3]:
        assert all(torch.equal(x, best[member][name]) for name, x in member.task.tensors().items())
        want = evaluate(member.bank, member.task, member.test)
        assert member.tested == pytest.approx(want.metrics, **TOL)
    assert not pack[3].tested
    assert all(torch.equal(x, moved[name]) for name, x in pack[3].task.tensors().items())


def test_a_runs_test_scores_are_those_that_its_pack_has_found(tmp_path, monkeypatch):
    """From the entry to the result, and to the record of a run that had ended before."""
    head = HEADS["classification"]
    bank, entries = pack(backbone_of("bert"), MIXED[:3], [head] * 3, tmp_path)
    entries = [Entry(**{f: getattr(e, f) for f in Entry.__slots__} | {"test": source_of(head, 80)}) for e in entries]
    monkeypatch.setattr(loop, "assign", lambda waiting, say, trunks: [PackedStepper(waiting)])
    found = fit_pack(bank, entries)
    for entry in entries:
        want = evaluate(bank, entry.task, entry.test)
        assert found[entry.task.name].test == pytest.approx(want.metrics, **TOL)
    again = fit_pack(bank, entries, resume=True)
    assert {name: result.test for name, result in again.items()} == {name: one.test for name, one in found.items()}
