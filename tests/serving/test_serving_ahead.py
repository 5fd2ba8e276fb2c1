"""What the engine makes while nobody asks, so that nobody waits for it."""

import logging
import time

import pytest

from bank.test_bank_graphs_ahead import pretended
from intarsia.backbone import Backbone
from intarsia.graphs import Graphs
from intarsia.serving.limits import Limits
from intarsia.serving.requests import Classify
from serving.served import Asked, engine_over, make, save, solo
from workflow.tiny_run import make_backbone

SMALL = Limits(batch_tokens=128, batch_rows=16)


@pytest.fixture
def graphed(tmp_path, monkeypatch):
    """An engine whose bank makes graphs, a task for it, and the keys of those that are made."""
    backbone = Backbone.load(str(make_backbone(tmp_path / "backbone")), dtype="float32")
    save(backbone, tmp_path, "first", 0)
    with engine_over(backbone, limits=SMALL) as engine:
        bank = engine._bank
        bank.graphs = Graphs(backbone, bank.under)
        made = pretended(bank, monkeypatch)
        engine.put("first", tmp_path / "first")
        yield engine, made


def answered(engine, name, text="good film"):
    return Asked(engine, Classify(task=name, texts=(text,))).end()


def waited(condition):
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_prepared_engine_makes_nothing_for_a_request(graphed, tmp_path):
    engine, made = graphed
    assert not made
    engine.prepare()
    before = len(made)
    assert before > 3
    engine.prepare()
    want = solo(engine.backbone, make(engine.backbone, "first", 0), ["good film"])[0]
    for _ in range(3):
        assert answered(engine, "first").scores == pytest.approx(want.scores, abs=1e-5)
    assert len(made) == before


def test_tasks_that_come_later_have_theirs_when_there_is_time(graphed, tmp_path):
    engine, made = graphed
    engine.prepare()
    before = len(made)
    save(engine.backbone, tmp_path, "second", 1)
    want = [
        solo(engine.backbone, make(engine.backbone, *who), ["bad plot"])[0] for who in (("first", 0), ("second", 1))
    ]
    engine.put("second", tmp_path / "second")
    for _ in range(5):
        for name, own in zip(("first", "second"), want, strict=True):
            assert answered(engine, name, "bad plot").scores == pytest.approx(own.scores, abs=1e-5)
    assert waited(lambda: len(made) >= 2 * before)
    assert {len(key.forms) for key in made[before:]} <= {1, 2}
    engine.remove("second")
    assert answered(engine, "first", "bad plot").scores == pytest.approx(want[0].scores, abs=1e-5)


def test_another_task_of_a_shape_that_is_there_needs_nothing(graphed, tmp_path, monkeypatch):
    engine, made = graphed
    engine.prepare()
    before, asked, bank = len(made), [], type(engine._bank)
    call = bank.__call__
    monkeypatch.setattr(
        bank, "__call__", lambda self, *given, **more: asked.append(given) or call(self, *given, **more)
    )
    save(engine.backbone, tmp_path, "second", 0, seed=1)
    engine.put("second", tmp_path / "second")
    engine.prepare()
    assert (len(made), asked) == (before, [])
    assert answered(engine, "second").label
    assert (len(made), len(asked)) == (before, 1)


def test_one_that_is_not_asked_to_prepares_nothing(graphed):
    engine, made = graphed
    time.sleep(0.1)
    answered(engine, "first")
    assert not made


def test_what_fails_ahead_is_said_and_fails_no_request(graphed, monkeypatch, caplog):
    engine, _ = graphed
    monkeypatch.setattr(Graphs, "make", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    with caplog.at_level(logging.ERROR):
        engine.prepare()
    assert sum("ahead of requests failed" in record.getMessage() for record in caplog.records) == 1
    assert answered(engine, "first").label
    assert engine.state == "ready"
