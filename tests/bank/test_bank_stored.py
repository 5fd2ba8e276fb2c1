"""Frozen tasks in the bank's own memory: slices and stacks, paging, replacing, aliases, bytes."""

import gc
import random

import pytest
import torch

import tiny
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError, TaskError
from intarsia.heads import Decoding, Head
from intarsia.methods import BottleneckAdapter, LoRA, PrefixTuning, PromptTuning
from intarsia.task import Task
from methods.every import METHODS, PROMPTED, bits, new_task, row, stir, usable, wrap

CLOSE = {"rtol": 0, "atol": 1e-5}
ALL = {**METHODS, **PROMPTED}
LIGHT = (
    "serial",
    "pfeiffer",
    "learned",
    "lora",
    "layer-norm",
    "bitfit",
    "head",
    "prefix",
    "ptuning-v2",
    "prompt",
    "ptuning mlp",
)


def make(backbone, method, name, seed=1, **more):
    """A frozen task of any method."""
    more.setdefault("head", Head(labels=tuple("abcde"[: 2 + seed % 3]), dropout=0.0))
    task = Task.new(name, backbone, ALL[method], more["head"]).eval()
    return stir(task, 0.3, seed).fold().requires_grad_(False)


def some(family, methods=LIGHT, each=2):
    """Some tasks of every method that the family takes."""
    backbone = wrap(family)
    names = [m for m in usable(backbone) if m in methods] + [m for m in PROMPTED if m in methods]
    return backbone, [make(backbone, m, f"{m} {i}", seed=i) for m in names for i in range(each)]


def ragged(family, rows, tokens=9):
    batch = tiny.inputs(family, rows=rows, tokens=tokens)
    batch.pop("decoder_input_ids", None)
    side = -1 if family in tiny.DECODERS else 1
    for index in range(rows if family != "vit" else 0):
        if cut := index % 4:
            where = slice(0, cut) if side < 0 else slice(tokens - cut, tokens)
            batch["attention_mask"][index, where] = 0
    return batch


modes = pytest.mark.parametrize("mode", ["pieces", "copies", "stacks"], indirect=True)
"""A CPU reads matrices where they lie, and copies small ones; a GPU stacks whole tasks."""


@pytest.fixture
def mode(request, monkeypatch):
    monkeypatch.setattr("intarsia.storage.SMALL", 0 if request.param == "pieces" else 4096)
    return request.param == "stacks"


def bank_of(backbone, tasks, stacked, **more):
    bank = TaskBank(backbone, **more)
    bank._stacked = stacked  # what the device decides
    for task in tasks:
        bank.add(task)
    return bank


def seen(result, batch, index):
    """A row's result at its real tokens."""
    mask = batch.get("attention_mask")
    return result[mask[index].bool()] if mask is not None and result.dim() == 2 else result


@modes
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_stored_tasks_in_any_mix_equal_the_tasks_themselves(family, mode):
    backbone, tasks = some(family)
    shuffle = random.Random(f"{family}")
    names = [task.name for task in tasks]
    rows = [shuffle.choice([*names, None]) for _ in range(16)]
    batch, close = ragged(family, len(rows)), CLOSE
    if all(site.parameter != "rms" for site in backbone.sites):  # transformers' RMSNorms are fp32 whatever the rest is
        backbone.model.double()
        tasks = [task.double() for task in tasks]
        batch = {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}
        close = {"rtol": 0, "atol": 1e-12}
    want = []
    with torch.no_grad():
        for index, name in enumerate(rows):
            alone = TaskBank(backbone, [t.requires_grad_(True) for t in tasks if t.name == name])
            want.append(alone(row(batch, index), tasks=[name])[0])
            alone.detach()
        bank = bank_of(backbone, [task.requires_grad_(False) for task in tasks], mode)
        together = bank(batch, tasks=rows)
    for index, name in enumerate(rows):
        torch.testing.assert_close(
            seen(together[index], batch, index),
            seen(want[index], batch, index),
            **close,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@modes
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "t5", "bart"])
def test_stored_tasks_generate_in_any_mix_what_each_generates_alone(family, mode):
    backbone, tasks = some(family)
    shuffle = random.Random(family)
    rows = [shuffle.choice([*(task.name for task in tasks), None]) for _ in range(12)]
    batch = ragged(family, len(rows))
    for decoding in (Decoding(max_new_tokens=5), Decoding(max_new_tokens=4, beams=3)):
        bank = bank_of(backbone, tasks, mode)
        together = bank.generate(batch, rows, decoding)
        for index, name in enumerate(rows):
            alone = bank.generate(row(batch, index), [name], decoding)[0]
            assert together[index].tolist() == alone.tolist(), (name, decoding)
        bank.detach()


@pytest.mark.parametrize("method", list(ALL))
def test_a_stored_task_comes_back_with_the_same_tensors(method, tmp_path):
    backbone = wrap("bert")
    task = make(backbone, method, "one")
    task.metrics, task.data = {"accuracy": 0.5}, {"max_length": 12}
    bank = TaskBank(backbone, [task])
    back = bank.evict("one")
    assert bits(back.tensors()) == bits(task.tensors())
    back.save(tmp_path / "a")
    task.save(tmp_path / "b")
    assert (back.version, back.metrics, back.data) == (task.version, task.metrics, task.data)


def test_the_bank_keeps_its_own_copy_of_a_frozen_task():
    backbone = wrap("bert")
    task = make(backbone, "serial", "one")
    bank = TaskBank(backbone, [task])
    batch = tiny.inputs("bert", rows=2)
    with torch.no_grad():
        before = bank(batch, tasks="one")
        for parameter in task.parameters():
            parameter.zero_()
        assert torch.equal(bank(batch, tasks="one"), before)


def numbers(bank, where):
    """Bytes that the stored tasks really have there."""
    stored = bank._shelf._here if where == "here" else bank._shelf._away
    flats = [flat for one in stored.values() for flat in (one.flat, one.task.head_module.flat)]
    return sum(flat.untyped_storage().nbytes() for flat in flats)


def test_tasks_beyond_the_capacity_are_paged_by_use_and_answer_the_same():
    backbone, tasks = some("bert", ("serial", "lora", "prefix", "prompt"), each=3)
    batch = ragged("bert", 8)
    shuffle = random.Random(0)
    free = bank_of(backbone, tasks, False)
    sizes = {task.name: free.nbytes(task.name) for task in tasks}
    mixes = [[shuffle.choice([*sizes, None]) for _ in range(8)] for _ in range(12)]
    with torch.no_grad():
        want = [free(batch, tasks=mix) for mix in mixes]
        free.detach()
        for stacked in (False, True):
            tight = bank_of(backbone, tasks, stacked, capacity=int(1.5 * max(sizes.values())))
            for mix, expected in zip(mixes, want, strict=True):
                for got, wanted in zip(tight(batch, tasks=mix), expected, strict=True):
                    torch.testing.assert_close(got, wanted, **CLOSE)
                assert tight.device_bytes == numbers(tight, "here") <= 1.5 * max(sizes.values())
                assert tight.host_bytes == numbers(tight, "away")
                assert tight.device_bytes + tight.host_bytes == sum(sizes.values())
            tight.detach()
            assert (tight.device_bytes, tight.host_bytes) == (0, 0)


def test_the_least_recently_used_task_goes_first():
    backbone = wrap("bert")
    tasks = [make(backbone, "lora", name) for name in "abc"]
    size = TaskBank(backbone, [make(backbone, "lora", "x")]).nbytes("x")
    bank = TaskBank(backbone, tasks[:2], capacity=2 * size)
    batch = tiny.inputs("bert", rows=1)
    with torch.no_grad():
        bank(batch, tasks="a")
        bank.add(tasks[2])
        assert [bank.on_device(name) for name in "abc"] == [True, False, True]
        bank(batch, tasks=["b"])
        assert [bank.on_device(name) for name in "abc"] == [False, True, True]


def test_a_task_larger_than_the_capacity_is_refused_and_nothing_stays_behind():
    backbone = wrap("bert")
    bank = TaskBank(backbone, capacity=1000)
    with pytest.raises(ConfigError, match="capacity is 1,000"):
        bank.add(make(backbone, "serial", "one"))
    assert not bank.tasks
    assert not bank._hooks
    assert not any(form.users for form in bank._shelf._forms.values())
    with pytest.raises(ConfigError, match="capacity"):
        TaskBank(backbone, capacity=0)


def test_replace_changes_the_answers_of_the_name_and_of_its_aliases():
    backbone = wrap("llama")
    old, new = make(backbone, "lora", "one", seed=1), make(backbone, "prompt", "two", seed=4)
    bank = TaskBank(backbone, [old])
    bank.alias("best", "one")
    batch = tiny.inputs("llama", rows=2)
    with torch.no_grad():
        first = bank(batch, tasks="best")
        bank.replace("one", new)
        second = bank(batch, tasks=["best", "one"])
        alone = TaskBank(backbone, [new])(batch, tasks="two")
    assert not torch.equal(first, alone)
    torch.testing.assert_close(torch.stack(second), alone, **CLOSE)
    with pytest.raises(TaskError, match="backbone"):
        bank.replace("one", make(wrap("gpt2"), "lora", "three"))
    assert torch.equal(bank(batch, tasks="best"), alone)
    bank.evict("best")
    assert not bank.tasks
    assert not bank.aliases


def test_names_and_aliases_do_not_collide():
    backbone = wrap("bert")
    bank = TaskBank(backbone, [make(backbone, "lora", "one")])
    bank.alias("uno", "one")
    with pytest.raises(TaskError, match="already holds"):
        bank.add(make(backbone, "lora", "uno"))
    with pytest.raises(TaskError, match="already holds"):
        bank.alias("one", "one")
    with pytest.raises(TaskError, match="no task 'dos'"):
        bank.alias("due", "dos")
    bank.add(make(backbone, "lora", "one"), name="one@2")
    assert list(bank.tasks) == ["one", "one@2"]


def test_evicting_everything_frees_what_the_bank_took():
    backbone, tasks = some("bert", each=1)
    before = {name: len(module._forward_hooks) for name, module in backbone.base.named_modules()}
    bank = TaskBank(backbone, tasks)
    with torch.no_grad():
        bank(ragged("bert", 4), tasks=[task.name for task in tasks[:4]])
    bank.detach()
    gc.collect()
    assert {name: len(module._forward_hooks) for name, module in backbone.base.named_modules()} == before
    assert (bank.device_bytes, len(bank._shelf._here), len(bank._hooks)) == (0, 0, 0)
    assert not any(form.users for form in bank._shelf._forms.values())


def test_live_and_stored_tasks_mix_and_only_the_live_ones_learn():
    backbone = wrap("bert")
    live = new_task(backbone, "serial", name="live")
    bank = TaskBank(backbone, [live, make(backbone, "lora", "still")])
    scores = bank(tiny.inputs("bert", rows=2), tasks=["live", "still"])
    sum(score.sum() for score in scores).backward()
    assert all(parameter.grad is not None for parameter in live.parameters())
    assert bank.nbytes("live") == 0


def test_a_bank_of_half_precision_keeps_its_tasks_in_half_the_bytes():
    sizes = []
    for dtype in (torch.float32, torch.bfloat16):
        backbone = Backbone.wrap(tiny.build("llama").to(dtype))
        task = Task.new("t", backbone, BottleneckAdapter(width=8), Head(labels=("a", "b"))).eval()
        batch = tiny.inputs("llama", rows=2)
        with torch.no_grad():
            live = TaskBank(backbone, [stir(task)])
            want = live(batch, tasks="t")
            live.detach()
            bank = TaskBank(backbone, [task.requires_grad_(False)])
            assert torch.equal(bank(batch, tasks="t"), want)
        sizes.append(bank.nbytes("t") - bank.tasks["t"].head_module.nbytes)  # the head is in fp32
    assert sizes[0] == 2 * sizes[1]


def test_tasks_of_one_shape_share_a_form_whatever_they_were_started_from():
    backbone = wrap("llama")
    head = Head(labels=("a", "b"))
    methods = [
        LoRA(rank=2),
        LoRA(rank=2),
        LoRA(rank=3),
        PromptTuning(length=4, init="uniform"),
        PromptTuning(length=5, init="uniform"),
        PrefixTuning(length=3, mid=None),
        PrefixTuning(length=3, mid=6, gating=True),
    ]
    bank = TaskBank(backbone)
    for number, method in enumerate(methods):
        bank.add(Task.new(str(number), backbone, method, head).fold().requires_grad_(False))
    assert len(bank._shelf._forms) == 5
