"""Continuous batching: every text is the one that its request gets alone, whoever joins and leaves meanwhile."""

import random

import pytest
import torch

import tiny
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError
from intarsia.heads import Decoding
from intarsia.methods import PrefixTuning, PromptTuning
from intarsia.serving.decoder import Decoder, Writing
from intarsia.serving.sampling import Sampling
from intarsia.task import Task
from methods.every import METHODS, PROMPTED, stir, wrap

KINDS: dict[str, object] = {
    "serial": METHODS["serial"],
    "lora": METHODS["lora of q and v"],
    "prefix": PROMPTED["prefix flat"],
    "counted prefix": PrefixTuning(length=3, mid=None, init_std=0.5, position_offset=True),
    "prompt": PromptTuning(length=3, init="uniform"),
    "second prompt": PromptTuning(length=5, init="uniform", place="after-first"),
    "full": METHODS["top-layers"],
}


class Letters:
    """A tokenizer of one letter a token, as far as decoding goes."""

    eos_token_id = 2

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(0x100 + token) for token in ids if token > 2)


def bank_of(family, kinds=KINDS, **more):
    backbone = wrap(family)
    backbone._tokenizer = Letters()
    bank = TaskBank(backbone, **more)
    for number, (name, method) in enumerate(kinds.items()):
        if name == "counted prefix" and not backbone.shifts_positions:
            continue
        bank.add(stir(Task.new(name, backbone, method).eval(), 0.4, number).fold().requires_grad_(False))
    return bank


def alone(bank, writing):
    ids = torch.tensor([writing.prompt])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return bank.generate(batch, [writing.task], Decoding(max_new_tokens=writing.sampling.max_tokens))[0].tolist()


def asked(bank, shuffle, number):
    names = [*bank.tasks, None]
    return [
        Writing(
            [shuffle.randrange(3, 97) for _ in range(shuffle.randint(1, 12))],
            shuffle.choice(names),
            Sampling(max_tokens=shuffle.randint(1, 12)),
        )
        for _ in range(number)
    ]


def run(decoder, arriving, shuffle, cancel=()):
    """Lets the texts come a few at a time; returns each one's whole text and reason."""
    pieces, ends = dict.fromkeys(arriving, ""), {}
    arriving = list(arriving)
    for _ in range(400):
        for _ in range(shuffle.randint(0, 3)):
            if arriving:
                decoder.add(arriving.pop(0))
        for writing in cancel:
            if len(writing.new) >= 2 and writing not in ends:
                decoder.cancel(writing)
                ends[writing] = "cancelled"
        for one in decoder.step():
            if one.error is not None:
                raise one.error
            pieces[one.writing] += one.text
            if one.finish:
                assert one.writing not in ends
                ends[one.writing] = one.finish
        if not arriving and not decoder.running and not decoder.waiting:
            return pieces, ends
    raise AssertionError("texts are never finished")


@pytest.mark.parametrize("family", tiny.DECODERS)
def test_every_text_is_the_one_that_its_request_gets_alone(family):
    bank = bank_of(family)
    for seed in range(2):
        shuffle = random.Random(f"{family} {seed}")
        bank._stacked = bool(seed)
        texts = asked(bank, shuffle, 14)
        want = {writing: alone(bank, writing) for writing in texts}
        pieces, ends = run(Decoder(bank, max_rows=shuffle.randint(2, 8)), texts, shuffle)
        for writing in texts:
            assert writing.new == want[writing], (writing.task, seed)
            assert pieces[writing] == Letters().decode(writing.new)
            assert ends[writing] == ("length" if len(writing.new) == writing.sampling.max_tokens else "stop")


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
