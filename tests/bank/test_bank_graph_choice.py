"""Which graphs are made, and whose rows they serve."""

import gc
import random

import pytest
import torch

import tiny
from bank.test_bank_graphs import DEVICE, Watched, alone, graphed, mixed, same, tasks_of, there
from bank.test_bank_stored import ragged
from intarsia.bank import TaskBank
from intarsia.graphs import Graphs
from intarsia.graphs.one import Key, OnePass
from intarsia.routing import PLAIN
from methods.every import new_task, row, wrap


class Fake:
    """A form that some task has."""

    users = 1


def test_a_model_that_waits_for_the_device_has_no_graphs():
    """As the routing of experts does: such a pass is no graph."""
    tasks = tasks_of(wrap("bert"), ("serial", "lora", "prefix flat"))
    rows = mixed(tasks, "bert")
    batch = ragged("bert", len(rows))
    want = alone("bert", tasks, batch, rows)
    backbone = there("bert")
    backbone.base.encoder.layer[0].register_forward_hook(lambda _m, _a, y: y * (1 + 0 * y.sum().item()))
    bank = graphed(backbone, tasks)
    with torch.no_grad():
        for _ in range(3):
            same(bank(batch, tasks=rows), want, batch, rows)
    assert all(bank.graphs.seen)
    assert not bank.graphs._passes


def test_a_pass_that_cannot_be_a_graph_is_run_as_it_is_and_said_once(monkeypatch, caplog):
    tasks = tasks_of(wrap("bert"), ("serial", "lora"))
    rows = mixed(tasks, "bert")
    batch = ragged("bert", len(rows))
    want = alone("bert", tasks, batch, rows)
    bank = graphed(there("bert"), tasks)
    bank.graphs.__dict__ |= {"able": True, "_on_gpu": True, "_stream": object()}
    monkeypatch.setattr(OnePass, "capture", lambda *_: "the stream is capturing")
    with torch.no_grad():
        for part in (len(rows), len(rows), len(rows), 2, 2):
            same(bank({k: v[:part] for k, v in batch.items()}, tasks=rows[:part]), want[:part], batch, rows[:part])
    said = "BertModel: a pass is no CUDA graph, and is run as it is: the stream is capturing"
    assert [record.getMessage() for record in caplog.records] == [said]


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_neither_garbage_nor_a_failed_capture_spoils_later_graphs():
    class Loop:
        """Freed by the collector alone, and a graph with it."""

        def __init__(self):
            self.own, self.graph = self, torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                torch.zeros(4, device="cuda").add_(1)

    tasks = tasks_of(wrap("bert"), ("serial", "lora"))
    rows, batch = mixed(tasks, "bert"), ragged("bert", len(mixed(tasks, "bert")))
    backbone, waits = there("bert"), [True]
    backbone.base.encoder.layer[0].register_forward_hook(lambda _m, _a, y: y.sum().item() and None if waits else None)
    bank = graphed(backbone, tasks)
    before = gc.get_threshold()
    with torch.no_grad():
        for _ in range(2):
            bank(batch, tasks=rows)
        assert bank.graphs._never
        assert not bank.graphs._passes
        waits.clear()
        for times in (4, 16):
            for _ in range(5):
                Loop()
            gc.set_threshold(1, 1, 1)
            for _ in range(2):
                bank({k: v.repeat(times, 1) for k, v in batch.items()}, tasks=rows * times)
            gc.set_threshold(*before)
    assert len(bank.graphs._never) == 1
    assert len(bank.graphs._passes) == 2


def test_tasks_come_and_go_under_graphs_that_were_made_before(monkeypatch):
    """A graph has what was hooked when it was made, and nothing else, whoever's rows it gets later."""
    tasks = tasks_of(wrap("bert"), ("serial", "parallel", "lora", "layer-norm", "prefix flat", "ptuning-v2"), each=1)
    batch, shuffle = ragged("bert", 6), random.Random(1)
    want = {task.name: alone("bert", [task], batch, [task.name] * 6) for task in tasks}
    backbone = there("bert")
    bank = graphed(backbone, [])
    bank.graphs.__dict__ |= {"able": True, "_on_gpu": True, "_stream": object()}
    send = Graphs._send

    def capture(one, under, _stream, _pool):
        hooked = set(bank._hooks)

        def replay():
            route = one.route(bank.graphs.flats)
            project, prefix = route.project, route.prefix
            route.project = lambda key, x, y: project(key, x, y) if key in hooked else y
            route.prefix = lambda key, rows: prefix(key, rows) if key in hooked else None
            one.run(under, route)

        one.replay = replay

    def noting(graphs, one, flats, kept):
        graphs.flats = flats
        send(graphs, one, flats, kept)

    if DEVICE == "cpu":  # a GPU has the real ones
        monkeypatch.setattr(OnePass, "capture", capture)
        monkeypatch.setattr(Graphs, "_send", noting)
    else:
        bank.graphs = Watched(backbone, bank.under)
    for _ in range(120):
        for task in shuffle.sample(tasks, 2):
            bank.discard(task.name) if task.name in bank.tasks else bank.add(task)
        rows = [shuffle.choice([None, *bank.tasks]) for _ in range(6)]
        with torch.no_grad():
            found = bank(batch, tasks=rows)
        known = [index for index, name in enumerate(rows) if name is not None]
        for index in known:
            same(found[index : index + 1], want[rows[index]][index : index + 1], row(batch, index), [rows[index]])
    assert 3 < len(bank.graphs._passes) < 40


def test_few_graphs_serve_rows_of_any_forms():
    backbone = wrap("bert")
    graphs, made, forms = Graphs(backbone, TaskBank(backbone).under), [], [Fake() for _ in range(6)]

    def ask(*some):
        """As `_run`, where a graph is made at once."""
        key = Key(64, 16, 64, False, False, tuple(sorted(some, key=id)), None)
        chosen, kept = graphs._chosen(key)
        assert set(some) <= set(chosen.forms)
        if kept and chosen not in graphs._passes:
            made.append(chosen)
            graphs._passes[chosen] = None
            graphs._sizes.setdefault(chosen._replace(forms=()), []).append(chosen)
        return chosen, kept

    shuffle = random.Random(0)
    assert ask(forms[0]) == (ask(forms[0])[0], False)  # the second one makes it
    assert len(made) == 1
    late = [ask(*shuffle.sample(forms, shuffle.randint(1, 6)))[1] for _ in range(500)][20:]
    assert all(late)
    assert len(made) < 10
    for _ in range(20):
        chosen, _ = ask(forms[0])
    assert chosen.forms == (forms[0],)
    gone = Fake()
    gone.users = 0
    assert [ask(gone, forms[1])[1] for _ in range(4)] == 4 * [False]
    many = [Fake() for _ in range(60)]  # more forms than a graph should know
    before = len(made)
    for _ in range(100):
        ask(*shuffle.sample(many, 20))
    assert len(made) == before


class Refusing:
    """Graphs that find out by running them that the model does what packed rows do not know."""

    def __init__(self, under):
        self.under, self.asked = under, 0

    def features(self, batch, rows):
        self.asked += 1
        with self.under(PLAIN):
            return None


def test_rows_whose_graph_is_refused_have_their_tasks_all_the_same():
    backbone = wrap("bert")
    bank = TaskBank(
        backbone, [new_task(backbone, name).requires_grad_(False) for name in ("serial", "lora", "top-layers")]
    )
    batch, rows = tiny.inputs("bert", rows=4), ["serial", "lora", "top-layers", None]
    with torch.no_grad():
        want = bank(batch, tasks=rows), bank(batch, tasks="serial")
        bank.graphs = Refusing(bank.under)
        found = bank(batch, tasks=rows), bank(batch, tasks="serial")
    assert bank.graphs.asked > 2
    torch.testing.assert_close(found, want, rtol=0, atol=0)


def test_a_route_under_another_ends_with_the_other_again():
    backbone = wrap("bert")
    bank, batch = TaskBank(backbone, [new_task(backbone, "serial")]), tiny.inputs("bert")
    with bank.under(bank.route(["serial"] * 3)):
        want = backbone.features(batch)
        with bank.under(PLAIN):
            plain = backbone.features(batch)
        assert torch.equal(backbone.features(batch), want)
    assert torch.equal(backbone.features(batch), plain)
    assert not torch.equal(plain, want)
