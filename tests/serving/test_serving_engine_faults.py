"""The engine when it is full, late, failing, dying or draining."""

import threading
import time

import pytest
import torch

from intarsia.backbone import Backbone
from intarsia.errors import ConfigError, TaskError
from intarsia.serving.limits import Limits
from intarsia.serving.requests import (
    BadRequest,
    Busy,
    Classify,
    DeadlineExceeded,
    EngineFailure,
    Generate,
    NoMemory,
    Unavailable,
)
from intarsia.serving.sampling import Sampling
from intarsia.storage import Stored
from serving.served import Asked, engine_over, make, save
from workflow.tiny_run import make_encoder_decoder


def held(engine):
    """Holds the engine's thread until the returned event is set."""
    go, there = threading.Event(), threading.Event()

    def wait():
        there.set()
        go.wait(20)

    with engine._lock:
        engine._controls.append(wait)
        engine._lock.notify_all()
    there.wait(20)
    return go


def test_a_full_queue_refuses_and_says_when_to_come_again(encoder, tmp_path):
    save(encoder, tmp_path, "mood")
    with engine_over(encoder, limits=Limits(queue=5)) as engine:
        engine.put("mood", tmp_path / "mood")
        go = held(engine)
        taken = [Asked(engine, Classify(task="mood", texts=("good",))) for _ in range(5)]
        with pytest.raises(Busy) as caught:
            Asked(engine, Classify(task="mood", texts=("good",)))
        assert caught.value.retry_after > 0
        go.set()
        assert all(one.end().label for one in taken)


def test_rows_are_answered_and_other_tasks_heard_while_texts_fill_the_queue(decoder, tmp_path):
    save(decoder, tmp_path, "mood")
    save(decoder, tmp_path, "writer", kind="generation")
    with engine_over(decoder, limits=Limits(queue=4)) as engine:
        for name in ("mood", "writer"):
            engine.put(name, tmp_path / name)
        go, text = held(engine), Generate(task=None, prompt="the film", sampling=Sampling(max_tokens=3))
        taken = [Asked(engine, text) for _ in range(4)]
        with pytest.raises(Busy):
            Asked(engine, text)
        taken.append(Asked(engine, Generate(task="writer", prompt="the film", sampling=Sampling(max_tokens=3))))
        taken += [Asked(engine, Classify(task="mood", texts=("good",))) for _ in range(2)]
        go.set()
        ends = [one.end() for one in taken]
        assert [hasattr(end, "label") for end in ends] == [False] * 5 + [True] * 2


def test_deadlines_and_cancellation_end_what_waits(encoder, decoder, tmp_path):
    save(encoder, tmp_path, "mood")
    with engine_over(encoder) as engine:
        engine.put("mood", tmp_path / "mood")
        go = held(engine)
        late = Asked(engine, Classify(task="mood", texts=("good",), deadline=time.monotonic() + 0.05))
        gone = Asked(engine, Classify(task="mood", texts=("good",)))
        kept = Asked(engine, Classify(task="mood", texts=("good",)))
        gone.ticket.cancel()
        time.sleep(0.1)
        go.set()
        with pytest.raises(DeadlineExceeded):
            late.end()
        assert kept.end().label
        deadline = time.monotonic() + 5
        while engine._jobs and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone.events.empty()
        assert engine.counts.requests["classify", "cancelled"] == 1
        assert engine.counts.requests["classify", "late"] == 1
    with engine_over(decoder) as engine:
        one = Asked(engine, Generate(task=None, prompt="good", sampling=Sampling(max_tokens=30)))
        one.events.get(timeout=20)
        one.ticket.cancel()
        deadline = time.monotonic() + 5
        while engine._jobs and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine.gauges()["running"] == 0


def test_a_row_that_the_model_fails_on_does_not_fail_its_neighbours(encoder, tmp_path, monkeypatch):
    save(encoder, tmp_path, "mood")
    save(encoder, tmp_path, "bad", 1)
    with engine_over(encoder) as engine:
        for name in ("mood", "bad"):
            engine.put(name, tmp_path / name)
        call = type(engine._bank).__call__

        def failing(bank, batch, tasks):
            if any(name.startswith("bad@") for name in tasks):
                raise RuntimeError("out of luck")
            return call(bank, batch, tasks)

        monkeypatch.setattr(type(engine._bank), "__call__", failing)
        go = held(engine)
        good = [Asked(engine, Classify(task="mood", texts=("good",))) for _ in range(3)]
        bad = Asked(engine, Classify(task="bad", texts=("good",)))
        time.sleep(0.05)
        go.set()
        assert all(one.end().label for one in good)
        with pytest.raises(EngineFailure, match="RuntimeError"):
            bad.end()


def test_who_waits_too_long_is_told_while_a_pass_takes_its_time(encoder, tmp_path):
    save(encoder, tmp_path, "mood")
    with engine_over(encoder) as engine:
        engine.put("mood", tmp_path / "mood")
        go = held(engine)
        late = Asked(engine, Classify(task="mood", texts=("good",), deadline=time.monotonic() + 0.05))
        kept = Asked(engine, Classify(task="mood", texts=("good",)))
        with pytest.raises(DeadlineExceeded):
            late.end(10)  # the engine's thread is still held
        go.set()
        assert kept.end().label
        assert engine.put("mood", tmp_path / "mood")  # a turn has passed
        assert late.events.empty()
        assert dict(engine.counts.requests) == {("classify", "ok"): 1, ("classify", "late"): 1}


def test_a_task_that_the_device_has_no_memory_for_ends_nobody(encoder, tmp_path, monkeypatch):
    first = save(encoder, tmp_path, "mood")
    save(encoder, tmp_path, "big", 1)
    with engine_over(encoder) as engine:
        engine.put("mood", tmp_path / "mood")
        bank = engine._bank
        before = (dict(bank._hooks), bank.device_bytes, bank.host_bytes)

        def full(*_):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has none.")

        with monkeypatch.context() as patch:
            patch.setattr(Stored, "move", full)
            with pytest.raises(NoMemory, match="cpu has no memory left for this task; serve with a --capacity"):
                engine.put("big", tmp_path / "big")
        assert (dict(bank._hooks), bank.device_bytes, bank.host_bytes) == before
        assert Asked(engine, Classify(task="mood", texts=("good",))).end().label
        assert [card.version for card in engine.cards()] == [first]
        assert engine.put("big", tmp_path / "big").name == "big"


def test_a_caller_that_fails_on_a_piece_ends_nobody_else(decoder):
    def failing(_event):
        raise RuntimeError("nobody is there")

    with engine_over(decoder) as engine:
        engine.submit(Generate(task=None, prompt="good", sampling=Sampling(max_tokens=4)), failing)
        assert Asked(engine, Generate(task=None, prompt="good", sampling=Sampling(max_tokens=4))).end().new_tokens
        assert engine.state == "ready"


def test_a_text_that_an_encoder_decoder_fails_on_does_not_fail_its_neighbours(tmp_path, monkeypatch):
    backbone = Backbone.load(str(make_encoder_decoder(tmp_path / "t5")), dtype="float32")
    for number, name in enumerate(("writer", "bad")):
        save(backbone, tmp_path, name, number, kind="generation")
    with engine_over(backbone) as engine:
        for name in ("writer", "bad"):
            engine.put(name, tmp_path / name)
        generate = type(engine._bank).generate

        def failing(bank, batch, tasks, decoding):
            if any(name.startswith("bad@") for name in tasks):
                raise ConfigError("no places")
            return generate(bank, batch, tasks, decoding)

        monkeypatch.setattr(type(engine._bank), "generate", failing)
        go, sampling = held(engine), Sampling(max_tokens=3)
        asked = [
            Asked(engine, Generate(task=name, prompt="good", sampling=sampling)) for name in ("writer", "bad", "writer")
        ]
        go.set()
        assert [asked[place].end().prompt_tokens > 0 for place in (0, 2)] == [True, True]
        with pytest.raises(BadRequest, match="no places"):
            asked[1].end()


def test_when_the_thread_dies_everyone_is_told(encoder, tmp_path):
    save(encoder, tmp_path, "mood")
    with engine_over(encoder) as engine:
        engine.put("mood", tmp_path / "mood")
        go = held(engine)
        waiting = Asked(engine, Classify(task="mood", texts=("good",)))

        def die():
            raise SystemExit

        with engine._lock:
            engine._controls.append(die)
        go.set()
        with pytest.raises(Unavailable):
            waiting.end()
        engine._thread.join(5)
        assert engine.state == "dead"
        with pytest.raises(Unavailable, match="dead"):
            Asked(engine, Classify(task="mood", texts=("good",)))
        with pytest.raises(Unavailable, match="dead"):
            engine.remove("mood")


def test_draining_finishes_what_is_under_way_and_refuses_the_rest(encoder, tmp_path):
    save(encoder, tmp_path, "mood")
    with engine_over(encoder) as engine:
        engine.put("mood", tmp_path / "mood")
        go = held(engine)
        taken = [Asked(engine, Classify(task="mood", texts=("good",))) for _ in range(5)]
        drain = threading.Thread(target=engine.drain, args=(20,))
        drain.start()
        while engine.state == "ready":
            time.sleep(0.01)
        with pytest.raises(Unavailable, match="draining"):
            Asked(engine, Classify(task="mood", texts=("good",)))
        go.set()
        assert all(one.end().label for one in taken)
        drain.join()


def test_a_task_that_cannot_be_served_changes_nothing(encoder, decoder, tmp_path):
    first = save(encoder, tmp_path, "mood")
    with engine_over(encoder) as engine:
        engine.put("mood", tmp_path / "mood")
        save(decoder, tmp_path / "other", "mood")
        with pytest.raises(TaskError, match="was trained on"):
            engine.put("mood", tmp_path / "other" / "mood")
        assert [card.version for card in engine.cards()] == [first]
        assert engine.put("mood", tmp_path / "mood").version == first
        engine.remove("mood")
        assert engine.cards() == []
        assert not engine._bank.tasks


def test_a_task_is_called_by_the_name_that_it_is_served_under(encoder, tmp_path):
    task = make(encoder, "text_classification")
    task.data["text_columns"] = ["first", "second"]
    task.save(tmp_path / "pairs")
    with engine_over(encoder) as engine:
        engine.put("pairs", tmp_path / "pairs")
        with pytest.raises(BadRequest, match=r"task 'pairs' takes 2 text\(s\) per row"):
            Asked(engine, Classify(task="pairs", texts=("one",))).end()
