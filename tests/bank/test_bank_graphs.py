"""Rows that find their tasks' tensors by address: packed one behind the other, as CUDA graphs run them, and padded. On a GPU by
kernels and graphs; elsewhere the same passes are run as they are, by the definitions or through Triton's interpreter."""

import random

import numpy as np
import pytest
import torch
import transformers as tf

import tiny
from bank.test_bank_stored import bank_of, make, ragged, seen
from intarsia.addressed import AddressedRoute
from intarsia.backbone import Backbone
from intarsia.backbone.packed import Segments, packed
from intarsia.bank import TaskBank
from intarsia.errors import UnsupportedError
from intarsia.graphs import Graphs, pack_rows
from intarsia.heads import Decoding, Head
from intarsia.methods import PromptTuning
from intarsia.task import Task
from methods.every import PROMPTED, row, stir, usable, wrap
from serving.test_serving_decoder_families import UNROUTED

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE, TOL = (torch.float64, 2e-6) if DEVICE == "cpu" else (torch.float32, 5e-4)
FAMILIES = [family for family in tiny.FAMILIES if family != "gemma2"]
"""Gemma 2 is eager, and takes neither way; test_bank_stored has it."""
WITHOUT = ("modernbert", "t5", "mt5", "bart", "mbart", "vit")
"""Families whose passes are no graphs: an encoder with a window, two stacks, images."""
ALONE = ("top-layers", "full")
WRITING = ("serial", "scaled", "lora", "layer-norm", "prefix flat", "ptuning-v2", "prompt")


def there(family, dtype=DTYPE):
    """The backbone where it is to run. (Heads compute in fp32, whatever the trunk does.)"""
    backbone = wrap(family)
    backbone.model.to(DEVICE, dtype)
    return backbone


def tasks_of(backbone, methods=None, each=2):
    names = [m for m in (*usable(backbone), *PROMPTED) if m not in ALONE and (methods is None or m in methods)]
    return [make(backbone, m, f"{m} {i}", seed=i) for m in names for i in range(each)]


def mixed(tasks, family):
    rows = [*(task.name for task in tasks), None, None]
    random.Random(family).shuffle(rows)
    return rows


def graphed(backbone, tasks, **more):
    """A bank as a GPU has it."""
    bank = bank_of(backbone, [task.requires_grad_(False) for task in tasks], True, **more)
    bank.graphs = Watched(backbone, bank.under)
    return bank


class Watched(Graphs):
    """Knows how often it had something to say."""

    def features(self, batch, rows):
        found = super().features(batch, rows)
        self.seen = [*getattr(self, "seen", []), found is not None]
        return found


def by_address(backbone, tasks):
    """Passes as a GPU runs them where it has no graph: longer rows, two stacks, decoding."""
    bank = bank_of(backbone, [task.requires_grad_(False) for task in tasks], True)
    bank.graphs = None
    bank._addressed = backbone.attention.plain  # what the device decides
    return bank


def alone(family, tasks, batch, rows):
    """Each row by itself on a CPU, with the task as it is in training."""
    backbone, want = wrap(family), []
    backbone.model.double()
    with torch.no_grad():
        for index, name in enumerate(rows):
            bank = TaskBank(backbone, [task.requires_grad_(True) for task in tasks if task.name == name])
            want.append(bank(row(batch, index), tasks=[name])[0])
            bank.detach()
    for task in tasks:
        task.requires_grad_(False)
    return want


def same(together, want, batch, rows, tol=TOL):
    for index, name in enumerate(rows):
        pair = (seen(one[index].cpu().double(), batch, index) for one in (together, want))
        torch.testing.assert_close(*pair, rtol=tol, atol=tol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_of_any_tasks_equal_the_tasks_alone(family):
    tasks = tasks_of(wrap(family))
    rows = mixed(tasks, family)
    batch = ragged(family, len(rows))
    want = alone(family, tasks, batch, rows)
    bank = graphed(there(family), tasks)
    with torch.no_grad():
        for part in (len(rows), 5, len(rows), 1):  # of other sizes, and the first one again
            same(bank({k: v[:part] for k, v in batch.items()}, tasks=rows[:part]), want[:part], batch, rows[:part])
    assert all(bank.graphs.seen) == any(bank.graphs.seen) == (family not in WITHOUT)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("place", ["start", "after-first", "end"])
def test_prompts_stand_at_their_places_in_packed_rows(family, place):
    backbone, head = wrap(family), Head(labels=("a", "b"), dropout=0.0, pooling="last" if family != "bert" else "cls")
    tasks = [
        stir(Task.new(str(n), backbone, PromptTuning(length=n, init="uniform", place=place), head).eval(), 0.3, n)
        for n in (1, 4, 6)
    ]
    rows = ["4", None, "1", "6", "4", "1"]
    batch = ragged(family, len(rows))
    if family == "bert":
        batch["token_type_ids"] = torch.arange(len(rows) * 9).view(-1, 9) % 2
    want = alone(family, tasks, batch, rows)
    bank = graphed(there(family), tasks)
    with torch.no_grad():
        same(bank(batch, tasks=rows), want, batch, rows)
    assert bank.graphs.seen == [True]


def test_tokens_and_virtual_tokens_of_a_row_stand_side_by_side():
    ids = np.array([[7, 8, 9], [0, 5, 6]])
    made, back = pack_rows(
        ids, np.array([[1, 1, 1], [0, 1, 1]]), None, np.array([2, 1]), ["after-first", "end"], after=True
    )
    assert made.ids.tolist() == [7, -1, -2, 8, 9, 5, 6, -1]
    assert made.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert made.lengths.tolist() == [5, 3]
    # Of padding a row's first column; the state behind a prompt at the end is the last token's.
    assert back.tolist() == [0, 3, 4, 5, 5, 7]


def test_tasks_that_change_come_with_the_next_batch():
    tasks = tasks_of(wrap("bert"), ("serial", "lora", "prefix flat", "prompt"))
    others = {task.name: other for task, other in zip(tasks, reversed(tasks), strict=True)}
    rows, batch = [task.name for task in tasks], ragged("bert", len(tasks))
    bank = graphed(there("bert"), tasks)
    with torch.no_grad():
        same(bank(batch, tasks=rows), alone("bert", tasks, batch, rows), batch, rows)
        for name, other in others.items():
            bank.replace(name, other)
        now = [others[name].name for name in rows]
        same(bank(batch, tasks=rows), alone("bert", tasks, batch, now), batch, now)
    assert bank.graphs.seen == [True, True]


def test_tasks_that_are_paged_in_are_found_where_they_are_now():
    tasks = tasks_of(wrap("bert"), ("serial", "lora", "prefix flat", "prompt"), each=3)
    batch, shuffle = ragged("bert", 6), random.Random(0)
    largest = max(graphed(there("bert"), tasks).nbytes(task.name) for task in tasks)
    bank = graphed(there("bert"), tasks, capacity=2 * largest)
    for _ in range(4):
        rows = [shuffle.choice(tasks).name for _ in range(6)]
        with torch.no_grad():
            same(bank(batch, tasks=rows), alone("bert", tasks, batch, rows), batch, rows)
    assert all(bank.graphs.seen)
    assert bank.host_bytes


def test_gradients_long_rows_and_tasks_in_training_take_the_plain_path():
    tasks = tasks_of(wrap("bert"), ("serial", "lora"))
    rows, batch = [task.name for task in tasks], ragged("bert", len(tasks))
    bank = graphed(there("bert"), tasks[1:])
    bank.add(tasks[0].requires_grad_(True).to(DEVICE))
    with torch.no_grad():
        bank(batch, tasks=rows)
    bank(batch, tasks=[rows[1]] * len(rows))  # there may be gradients
    assert not any(bank.graphs.seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_of_any_tasks_equal_the_tasks_alone(family):
    tasks = tasks_of(wrap(family))
    rows = mixed(tasks, family)
    batch = ragged(family, len(rows))
    want = alone(family, tasks, batch, rows)
    bank = by_address(there(family), tasks)
    with torch.no_grad():
        kinds = {type(bank.route([rows[index] for index in part])) for part in bank.passes(rows)}
        same(bank(batch, tasks=rows), want, batch, rows)
    assert (AddressedRoute in kinds) == (family not in ("t5", "mt5"))  # which have a bias of their own
    with torch.enable_grad():  # no kernel gives gradients
        assert not isinstance(bank.route(rows[:2]), AddressedRoute)


def write_alike(family, tasks, tokens, dtype=DTYPE):
    rows = mixed(tasks, family)
    batch = ragged(family, len(rows))
    bank = by_address(there(family, dtype), tasks)
    for decoding in (Decoding(max_new_tokens=tokens), Decoding(max_new_tokens=tokens, beams=2)):
        bank._addressed = True
        together = bank.generate(batch, rows, decoding)
        bank._addressed = False
        for index, name in enumerate(rows):
            assert together[index].tolist() == bank.generate(row(batch, index), [name], decoding)[0].tolist(), name


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "bart"])
def test_rows_found_by_address_write_what_each_task_writes_alone(family):
    write_alike(family, tasks_of(wrap(family), WRITING), 4)


@pytest.fixture
def kernels(monkeypatch):
    """Triton's kernels compute, through its interpreter where there is no GPU."""
    pytest.importorskip("triton")
    for module in ("addressed", "segments", "prefixed", "fast"):
        monkeypatch.setattr(f"intarsia.ops.{module}.fused", lambda x: x.dtype == torch.float32)


def test_kernels_write_what_each_task_writes_alone(kernels):
    write_alike("llama", tasks_of(wrap("llama"), ("serial", "lora", "prefix flat"), each=1), 2, torch.float32)


EVERY = ("serial", "scaled", "learned", "lora", "layer-norm", "bitfit", "prefix flat", "ptuning-v2", "prompt")


# The interpreter takes a second for each row: two of some, and of the second family what its norms, biases and heads make another.
@pytest.mark.parametrize(
    ("family", "makers", "some"),
    [("bert", (graphed, by_address), EVERY), ("gemma3", (graphed,), ("serial", "lora", "layer-norm", "prefix flat"))],
    ids=["bert", "gemma3"],
)
def test_kernels_find_the_tensors_of_each_row(family, makers, some, kernels):
    twice = ("serial 1", "prefix flat 1")
    tasks = [task for task in tasks_of(wrap(family), some) if task.name.endswith("0") or task.name in twice]
    rows = [name for name in mixed(tasks, family) if name is not None] + [None]
    batch = ragged(family, len(rows))
    want = alone(family, tasks, batch, rows)
    for make_bank in makers:
        bank = make_bank(there(family, torch.float32), tasks)
        with torch.no_grad():
            same(bank(batch, tasks=rows), want, batch, rows, max(2e-5, TOL))


SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
APART = [*(kind(**SMALL) for kind in (tf.DebertaV2Config, tf.MPNetConfig)), *UNROUTED.values()]
"""Models that do not call transformers' attention interface."""


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)  # DeBERTa's own, with torch 2.11
@pytest.mark.parametrize("config", APART, ids=lambda config: config.model_type)
def test_rows_are_never_packed_where_attention_would_not_keep_them_apart(config):
    kind = tf.AutoModelForCausalLM if config in UNROUTED.values() else tf.AutoModel
    backbone = Backbone.wrap(kind.from_config(config).eval())
    assert not Graphs(backbone, TaskBank(backbone).under).able
    starts = torch.tensor([0, 3, 6], dtype=torch.int32)
    with pytest.raises(UnsupportedError, match="attention interface"), packed(backbone, Segments(starts, 3, starts, 3)):
        pass
