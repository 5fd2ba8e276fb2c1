"""Texts in slots, as a GPU writes them: they come, go and move without a change to any other."""

import gc
import random
import weakref

import pytest
import torch

from intarsia.graphs import Graphs
from intarsia.serving import seated as seats
from intarsia.serving import slots
from intarsia.serving.decoder import Decoder, Writing
from intarsia.serving.sampling import Sampling
from intarsia.task import Task
from methods.every import stir
from serving.writing import KINDS, alone, asked, bank_of, run


def seated(family, **more):
    """A bank as a GPU has it, whose decoder gives rows slots."""
    bank = bank_of(family, **more)
    bank.graphs = Graphs(bank.backbone, bank.under)
    return bank


def test_slots_that_are_outgrown_are_freed(monkeypatch):
    monkeypatch.setattr(slots, "_COLUMNS", 4)
    bank = seated("llama")
    decoder = Decoder(bank)
    decoder.add(Writing([5, 6], "lora", Sampling(max_tokens=6)))
    decoder.step()
    small = weakref.ref(decoder._seated._seats._slots)
    decoder.add(Writing([5, 6], "lora", Sampling(max_tokens=30)))
    decoder.step()
    gc.collect()
    assert small() is None


def test_slots_that_are_too_small_grow_while_texts_are_written(monkeypatch):
    monkeypatch.setattr(slots, "_COLUMNS", 4)
    bank, shuffle = seated("llama"), random.Random(1)
    texts = sorted(asked(bank, shuffle, 14), key=lambda writing: len(writing.prompt) + writing.sampling.max_tokens)
    graphs, bank.graphs = bank.graphs, None
    short = Writing([5, 6], None, Sampling(max_tokens=6))
    texts = [short, *texts]
    want = {writing: alone(bank, writing) for writing in texts}
    bank.graphs = graphs
    decoder, sizes = Decoder(bank, max_rows=5), set()
    decoder.add(short)
    decoder.step()
    sizes.add(decoder._seated._seats._slots.columns)
    for writing in texts[1:]:
        decoder.add(writing)
    while decoder.running or decoder.waiting:
        assert not [one.error for one in decoder.step() if one.error is not None]
        sizes.add(decoder._seated._seats._slots.columns)
    assert len(sizes) > 1
    assert {writing: writing.new for writing in texts} == want


def test_seated_texts_that_are_cancelled_or_fail_leave_their_slots(monkeypatch):
    bank = seated("llama")
    decoder = Decoder(bank, max_rows=2)
    texts = [Writing([5, 6, 7], "lora", Sampling(max_tokens=8)) for _ in range(4)]
    for writing in texts:
        decoder.add(writing)
    decoder.step()
    assert (decoder.running, decoder.uses("lora"), decoder.uses("serial")) == (2, True, False)
    decoder.cancel(texts[0])
    decoder.step()
    assert [seat.slot for seat in decoder._seated._seats.seats] == [1, 0]
    with monkeypatch.context() as broken:
        broken.setattr(bank.graphs, "scores", lambda *given: (_ for _ in ()).throw(RuntimeError("no memory")))
        lost = [one for one in decoder.step() if one.error is not None]
    assert [(one.writing, str(one.error)) for one in lost] == [(text, "no memory") for text in texts[1:3]]
    assert (decoder.running, decoder._seated._seats.seats) == (0, [])
    while decoder.running or decoder.waiting:
        assert not [one.error for one in decoder.step() if one.error is not None]
    assert len(texts[3].new) == 8


def test_a_prompt_that_fails_takes_no_running_text_with_it(monkeypatch):
    bank = seated("llama")
    texts = [Writing([5, 6, 7], "lora", Sampling(max_tokens=8)), Writing([5, 6, 7, 8], None, Sampling(max_tokens=8))]
    want = alone_plainly(bank, texts[0])
    decoder, scores = Decoder(bank), bank.graphs.scores
    decoder.add(texts[0])
    decoder.step()
    decoder.add(texts[1])

    def picky(tokens, *more):
        if any(len(own) == 4 for own in tokens):
            raise RuntimeError("no memory")
        return scores(tokens, *more)

    monkeypatch.setattr(bank.graphs, "scores", picky)
    lost = []
    while decoder.running or decoder.waiting:
        lost += [one.writing for one in decoder.step() if one.error is not None]
    assert lost == [texts[1]]
    assert texts[0].new == want


def test_a_tokenizer_that_fails_ends_its_pass_and_not_the_decoder(monkeypatch):
    bank = seated("llama")
    decoder, texts = Decoder(bank, max_rows=2), [Writing([5, 6, 7], None, Sampling(max_tokens=3)) for _ in range(3)]
    want = alone_plainly(bank, texts[2])
    for text in texts:
        decoder.add(text)
    decoder.step()
    with monkeypatch.context() as broken:
        broken.setattr(texts[0].text, "push", lambda token: (_ for _ in ()).throw(ValueError("no such token")))
        lost = decoder.step()
    assert [(one.writing, str(one.error)) for one in lost] == [(text, "no such token") for text in texts[:2]]
    while decoder.running or decoder.waiting:
        assert not [one.error for one in decoder.step() if one.error is not None]
    assert texts[2].new == want


def test_prompts_that_are_too_many_for_one_pass_take_turns(monkeypatch):
    monkeypatch.setattr(seats, "PREFILL", 8)
    bank = seated("llama")
    texts = [Writing([5 + n, 6, 7, 8, 9], "lora", Sampling(max_tokens=4)) for n in range(4)]
    want = [alone_plainly(bank, text) for text in texts]
    decoder, scores, longest = Decoder(bank), bank.graphs.scores, []
    monkeypatch.setattr(
        bank.graphs, "scores", lambda tokens, *more: longest.append(sum(map(len, tokens))) or scores(tokens, *more)
    )
    run(decoder, list(texts), random.Random(0))
    assert [text.new for text in texts] == want
    assert max(longest) <= 8


def alone_plainly(bank, text):
    """As `alone`, without graphs."""
    graphs, bank.graphs = bank.graphs, None
    try:
        return alone(bank, text)
    finally:
        bank.graphs = graphs


def test_a_seated_text_is_written_to_its_end_by_the_task_that_began_it():
    bank = seated("llama")
    first = Writing([5, 6, 7], "lora", Sampling(max_tokens=10))
    want = alone_plainly(bank, first)
    decoder = Decoder(bank)
    decoder.add(first)
    decoder.step()
    bank.replace("lora", stir(Task.new("new", bank.backbone, KINDS["lora"]).eval(), 0.4, 9).requires_grad_(False))
    second = Writing([5, 6, 7], "lora", Sampling(max_tokens=10))
    decoder.add(second)
    while decoder.running or decoder.waiting:
        decoder.step()
    assert first.new == want
    assert second.new != want


def test_kernels_read_slots_and_tasks_where_they_lie(monkeypatch):
    pytest.importorskip("triton")
    bank = seated("llama", kinds={name: KINDS[name] for name in ("serial", "lora", "prefix", "prompt")})
    texts = [Writing([5, 6, 7 + place], name, Sampling(max_tokens=3)) for place, name in enumerate([*bank.tasks, None])]
    graphs, bank.graphs = bank.graphs, None
    want = {writing: alone(bank, writing) for writing in texts}
    bank.graphs = graphs
    for module in ("addressed", "segments", "fast"):
        monkeypatch.setattr(f"intarsia.ops.{module}.fused", lambda x: x.dtype == torch.float32)
    run(Decoder(bank), texts, random.Random(0))
    assert {writing: writing.new for writing in texts} == want


def test_drawn_greedy_and_stopped_texts_share_slots():
    """A pass that has begun for greedy rows knows nothing of those that join, leave or draw meanwhile."""
    shuffle = random.Random(11)

    def texts(bank):
        names, numbers = [*bank.tasks, None], random.Random(12)
        for number in range(24):
            draws = {"temperature": 1.5, "seed": number} if number % 4 == 3 else {}
            stop = (chr(0x100 + numbers.randint(3, 90)), chr(0x100 + numbers.randint(3, 90))) if number % 3 else ()
            sampling = Sampling(max_tokens=numbers.randint(1, 14), stop=stop, **draws)
            yield Writing([numbers.randint(3, 90) for _ in range(5)], names[number % len(names)], sampling)

    bank, found = bank_of("llama"), []
    for graphs in (None, Graphs(bank.backbone, bank.under)):
        bank.graphs = graphs
        made = list(texts(bank))
        cancel = made[5::7] if graphs else ()  # whoever leaves changes no other
        pieces, ends = run(Decoder(bank, max_rows=6), made, shuffle, cancel=cancel)
        found.append([(one.new, pieces[one], ends[one]) for one in made])
    plain, slotted = found
    assert {"stop", "length"} <= {end for *_, end in plain}
    for one, other in zip(plain, slotted, strict=True):
        assert one == other or (other[2] == "cancelled" and one[0][: len(other[0])] == other[0])
