"""Continuous batching: every text is the one that its request gets alone, whoever joins and leaves meanwhile."""

import random

import pytest

import tiny
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError
from intarsia.graphs import Graphs
from intarsia.serving import decoder as decoding
from intarsia.serving.decoder import Decoder, Writing
from intarsia.serving.sampling import Sampling
from intarsia.task import Task
from methods.every import stir, wrap
from serving.writing import KINDS, Letters, alone, asked, bank_of, run


@pytest.mark.parametrize("how", ["pieces", "stacks", "slots"])
@pytest.mark.parametrize("family", tiny.DECODERS)
def test_every_text_is_the_one_that_its_request_gets_alone(family, how):
    bank = bank_of(family)
    for seed in range(1 + (how == "slots")):
        shuffle = random.Random(f"{family} {how} {seed}")
        texts = asked(bank, shuffle, 14)
        want = {writing: alone(bank, writing) for writing in texts}
        bank._stacked = how != "pieces"  # what the device decides
        bank.graphs = Graphs(bank.backbone, bank.under) if how == "slots" else None
        decoder = Decoder(bank, max_rows=shuffle.randint(2, 8))
        # Gemma 2 has a cap on its scores, which packed rows do not know.
        assert decoder._seated.takes("lora") == (how == "slots" and family != "gemma2")
        pieces, ends = run(decoder, texts, shuffle)
        bank.graphs = None
        for writing in texts:
            assert writing.new == want[writing], writing.task
            assert pieces[writing] == Letters().decode(writing.new)
            assert ends[writing] == ("length" if len(writing.new) == writing.sampling.max_tokens else "stop")


@pytest.mark.parametrize("how", ["stacks", "slots"])
def test_rows_that_outgrow_a_window_see_what_is_in_it(how):
    """Which is longer than what one pass reads of a row."""
    bank = bank_of("mistral")
    bank.backbone.config.sliding_window = 20
    shuffle = random.Random(7)
    names = [*bank.tasks, None]
    texts = [
        Writing([shuffle.randint(3, 90) for _ in range(length)], name, Sampling(max_tokens=20))
        for name, length in zip(names, (3, 12, 17, 19, 24, 9, 15, 30, 18), strict=False)
    ]
    want = {writing: alone(bank, writing) for writing in texts}
    bank.graphs = Graphs(bank.backbone, bank.under) if how == "slots" else None
    decoder = Decoder(bank)
    assert decoder._seated.takes("lora") == (how == "slots")
    run(decoder, texts, shuffle)
    assert {writing: writing.new for writing in texts} == want


def test_texts_that_are_cancelled_change_no_other():
    bank = bank_of("llama")
    shuffle = random.Random(3)
    texts = asked(bank, shuffle, 16)
    want = {writing: alone(bank, writing) for writing in texts}
    gone = [writing for writing in texts[::3] if writing.sampling.max_tokens > 3]
    _, ends = run(Decoder(bank), texts, shuffle, cancel=gone)
    assert "cancelled" in ends.values()
    for writing in texts:
        assert writing.new == want[writing][: len(writing.new)]
        assert ends[writing] == "cancelled" or writing.new == want[writing]


def test_tasks_beyond_the_capacity_take_turns():
    roomy = bank_of("llama")
    shuffle = random.Random(5)
    texts = asked(roomy, shuffle, 12)
    want = [alone(roomy, writing) for writing in texts]
    largest = max(roomy.nbytes(name) for name in roomy.tasks)
    roomy.detach()
    run(Decoder(bank_of("llama", capacity=int(1.2 * largest))), texts, shuffle)
    assert [writing.new for writing in texts] == want


def test_a_task_that_is_replaced_while_another_writes_changes_only_itself():
    bank = bank_of("llama")
    decoder = Decoder(bank)
    first = Writing([5, 6, 7], "lora", Sampling(max_tokens=10))
    want = alone(bank, first)
    decoder.add(first)
    decoder.step()
    bank.replace("serial", stir(Task.new("new", bank.backbone, KINDS["serial"]).eval(), 0.4, 9).requires_grad_(False))
    second = Writing([5, 6], "serial", Sampling(max_tokens=6))
    expected = alone(bank, second)
    decoder.add(second)
    while decoder.running or decoder.waiting:
        decoder.step()
    assert (first.new, second.new) == (want, expected)


def test_a_draw_depends_on_its_own_seed_only():
    bank = bank_of("gpt2")

    def drawn(seed, beside):
        decoder = Decoder(bank)
        writing = Writing([9, 8, 7], "lora", Sampling(max_tokens=12, temperature=1.5, top_k=40, top_p=0.95, seed=seed))
        for other in asked(bank, random.Random(beside), beside):
            decoder.add(other)
        decoder.add(writing)
        while decoder.running or decoder.waiting:
            decoder.step()
        return writing.new

    assert drawn(1, 0) == drawn(1, 5)
    assert drawn(1, 0) != drawn(2, 0)


def test_stop_texts_end_a_text_and_are_not_shown():
    bank = bank_of("gpt2", {"lora": KINDS["lora"]})
    whole = Writing([9, 8, 7], "lora", Sampling(max_tokens=12))
    text = Letters().decode(alone(bank, whole))
    stop = text[4:6]
    writing = Writing([9, 8, 7], "lora", Sampling(max_tokens=12, stop=(stop, "never")))
    pieces, ends = run(Decoder(bank), [writing], random.Random(0))
    assert pieces[writing] == text[: text.index(stop)]
    assert ends[writing] == "stop"


def test_a_text_that_cannot_end_within_the_positions_is_refused():
    bank = bank_of("gpt2", {"prompt": KINDS["prompt"]})
    decoder = Decoder(bank)
    with pytest.raises(ConfigError, match="has places for 64"):
        decoder.add(Writing([5] * 30, "prompt", Sampling(max_tokens=32)))
    decoder.add(Writing([5] * 30, None, Sampling(max_tokens=32)))


def test_a_failing_group_leaves_and_the_others_go_on(monkeypatch):
    bank = bank_of("llama")
    decoder = Decoder(bank)
    good, bad = Writing([5, 6, 7], "lora", Sampling(max_tokens=8)), Writing([5, 6], "full", Sampling(max_tokens=8))
    want = alone(bank, good)
    for writing in (good, bad):
        decoder.add(writing)
    decoder.step()
    step = decoder._step

    def failing(word):
        if "full" in word:
            raise RuntimeError("out of luck")
        return step(word)

    monkeypatch.setattr(decoder, "_step", failing)
    lost = []
    while decoder.running:
        lost += [one for one in decoder.step() if one.error is not None]
    assert [(one.writing, str(one.error)) for one in lost] == [(bad, "out of luck")]
    assert good.new == want


def test_an_encoder_is_refused():
    with pytest.raises(ConfigError, match="decoders"):
        Decoder(TaskBank(wrap("bert")))


def test_prompts_of_like_length_are_read_together_and_a_long_one_alone(monkeypatch):
    monkeypatch.setattr(decoding, "PREFILL", 24)
    bank = bank_of("llama")
    texts = [Writing([5] * length, None, Sampling(max_tokens=4)) for length in (30, 3, 4, 12, 11, 5)]
    want = [alone(bank, writing) for writing in texts]
    read, prefilled = [], Decoder._prefilled
    monkeypatch.setattr(
        Decoder,
        "_prefilled",
        lambda self, rows: (read.append([len(row.prompt) for row in rows]), prefilled(self, rows))[1],
    )
    decoder = Decoder(bank)
    for writing in texts:
        decoder.add(writing)
    while decoder.running or decoder.waiting:
        decoder.step()
    assert read == [[3, 4, 5], [11, 12], [30]]
    assert [writing.new for writing in texts] == want


def test_rows_that_cannot_be_taken_out_stay_in_their_group(monkeypatch):
    bank = bank_of("llama")
    decoder = Decoder(bank)
    texts = [Writing([5, 6, 7], "lora", Sampling(max_tokens=8)), Writing([5, 6], "serial", Sampling(max_tokens=8))]
    want = [alone(bank, writing) for writing in texts]
    for writing in texts:
        decoder.add(writing)
    decoder.step()
    with monkeypatch.context() as broken:
        broken.setattr(decoder, "_beside", lambda parts: (_ for _ in ()).throw(RuntimeError("no memory")))
        with pytest.raises(RuntimeError, match="no memory"):
            decoder.cancel(texts[0])
    assert decoder.running == 2
    while decoder.running:
        decoder.step()
    assert [writing.new for writing in texts] == want
