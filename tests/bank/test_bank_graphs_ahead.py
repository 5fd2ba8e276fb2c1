"""Graphs that are made before anybody waits for them."""

import random

import pytest
import torch

from bank.test_bank_graphs import DEVICE, alone, graphed, same, tasks_of, there
from bank.test_bank_stored import ragged
from intarsia.graphs import Graphs
from intarsia.graphs.one import OnePass
from intarsia.graphs.sizes import columns_of, longest_of, rows_of, usual
from intarsia.serving.decoder import Decoder, Writing
from intarsia.serving.sampling import Sampling
from methods.every import wrap
from serving.writing import KINDS, bank_of
from serving.writing import alone as alone_written

LIMITS = {"tokens": 600, "rows": 64}


def pretended(bank, monkeypatch):
    """The keys of the graphs that are made. A CPU takes passes for graphs; a GPU has real ones."""
    made, capture, fill, flats = [], OnePass.capture, Graphs._fill, {}

    def note(one, under, stream, pool):
        made.append(one.key)
        if DEVICE == "cuda":
            return capture(one, under, stream, pool)
        one.replay = lambda: one.run(under, one.route(flats[one.key]))
        one.replay()
        return ""

    def filling(graphs, one, *given):
        flats[one.key] = fill(graphs, one, *given)
        return flats[one.key]

    monkeypatch.setattr(OnePass, "capture", note)
    monkeypatch.setattr(Graphs, "_fill", filling)
    if DEVICE == "cpu":
        bank.graphs.__dict__ |= {"able": True, "_on_gpu": True, "_stream": object()}
    return made


def size(lengths):
    return columns_of(sum(lengths)), rows_of(len(lengths)), longest_of(max(lengths))


@pytest.mark.parametrize(("tokens", "rows", "longest"), [(4096, 256, 256), (4096, 64, 256), (512, 32, 100), (64, 8, 8)])
def test_usual_batches_are_within_the_limits_and_all_of_another_size(tokens, rows, longest):
    found = list(usual(tokens, rows, longest))
    assert len({size(lengths) for lengths in found}) == len(found) < 130
    for lengths in found:
        assert len(lengths) <= rows
        assert 1 < max(lengths) <= longest
        assert min(lengths) > 0
        assert len(lengths) * max(lengths) <= tokens


@pytest.mark.parametrize("mean", [10, 30, 100])
def test_few_batches_of_texts_are_of_an_unusual_size(mean):
    """Rows of all numbers, whose lengths differ as those of sentences do."""
    known, shuffle, strange = {size(lengths) for lengths in usual(4096, 256, 256)}, random.Random(mean), 0
    for _ in range(2000):
        lengths = [min(256, max(4, int(mean * shuffle.lognormvariate(0, 0.5)))) for _ in range(shuffle.randint(1, 256))]
        while len(lengths) * max(lengths) > 4096:
            lengths.pop()
        strange += size(lengths) not in known
    assert strange < 20


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_no_batch_of_tasks_that_are_there_makes_a_graph_later(family, monkeypatch):
    tasks = tasks_of(wrap(family), ("serial", "lora", "prefix flat", "prompt"), each=2)
    bank, shuffle = graphed(there(family), tasks), random.Random(0)
    made = pretended(bank, monkeypatch)
    for _ in bank.ahead([task.name for task in tasks], **LIMITS, types=family == "bert"):
        pass
    before = len(made)
    assert before == len(set(made)) > 20
    for _ in bank.ahead([task.name for task in tasks], **LIMITS, types=family == "bert"):
        pass
    for count in (1, 3, 8, 30, 60):
        rows = [shuffle.choice(tasks).name for _ in range(count)]
        batch = ragged(family, count)
        if family == "bert" and count % 2:
            batch["token_type_ids"] = torch.arange(count * 9).view(-1, 9) % 2
        want = alone(family, tasks, batch, rows)
        with torch.no_grad():
            for _ in range(3):
                same(bank(batch, tasks=rows), want, batch, rows)
    assert len(made) == before


def test_it_ends_where_a_task_goes_or_the_model_has_no_graphs(monkeypatch):
    tasks = tasks_of(wrap("bert"), ("serial", "lora"), each=1)
    bank = graphed(there("bert"), tasks)
    made = pretended(bank, monkeypatch)
    steps = bank.ahead([task.name for task in tasks], **LIMITS)
    next(steps)
    bank.discard(tasks[0].name)
    assert (list(steps), len(made)) == ([], 1)
    monkeypatch.setattr(OnePass, "capture", lambda *_: "the stream is capturing")
    assert list(bank.ahead([tasks[1].name], **LIMITS)) == []
    assert len(bank.graphs._never) == 1
    bank.graphs = None
    assert list(bank.ahead([tasks[1].name], **LIMITS)) == []


def test_tasks_that_have_no_room_together_have_graphs_for_those_that_have(monkeypatch):
    tasks = tasks_of(wrap("bert"), ("serial", "lora"), each=1)
    whole = graphed(there("bert"), tasks)
    most = max(whole.nbytes(task.name) for task in tasks)
    whole.detach()
    bank = graphed(there("bert"), tasks, capacity=most)
    made = pretended(bank, monkeypatch)
    for _ in bank.ahead([task.name for task in tasks], **LIMITS):
        pass
    assert {len(key.forms) for key in made} == {1}


def test_slots_have_their_graphs_while_nobody_writes(monkeypatch):
    bank = bank_of("gpt2", {name: KINDS[name] for name in ("serial", "prompt")})
    texts = [Writing([5, 6, 7], name, Sampling(max_tokens=6)) for name in ("serial", "prompt", None)]
    want = [alone_written(bank, writing) for writing in texts]
    bank.graphs = Graphs(bank.backbone, bank.under)
    decoder, names = Decoder(bank, max_rows=20), ["serial", "prompt"]
    made = pretended(bank, monkeypatch)
    steps = decoder.ahead(names)
    next(steps)
    decoder.add(Writing([5, 6], "serial", Sampling(max_tokens=4)))
    decoder.step()
    assert list(steps) == list(decoder.ahead(names)) == []
    while decoder.running:
        decoder.step()
    for _ in decoder.ahead(names):
        pass
    before = len(made)
    assert {key.longest for key in made} >= {1, 16, 64}
    for writing in texts:
        decoder.add(writing)
    while decoder.running or decoder.waiting:
        assert not [one.error for one in decoder.step() if one.error is not None]
    assert len(made) == before
    assert [writing.new for writing in texts] == want
