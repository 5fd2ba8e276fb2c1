"""What a bank keeps of a task besides its tensors: the same facts, at little cost."""

import gc
import tracemalloc

import pytest
import torch
from test_bank_stored import CLOSE, make

import tiny
from intarsia.bank import TaskBank
from intarsia.heads import Head, HeadModule
from intarsia.task import Task
from methods.every import wrap


def test_what_the_bank_says_of_a_stored_task_is_what_the_task_says():
    backbone = wrap("bert")
    task = make(backbone, "prompt", "one")
    known = TaskBank(backbone, [task]).tasks["one"]
    assert known.trained_parameters() == task.trained_parameters()
    assert (known.prompt.length, known.prompt.place) == (task.prompt.length, task.prompt.place)
    assert (known.head, known.method, known.version) == (task.head, task.method, task.version)


def test_a_stored_prompt_costs_little_beside_its_numbers():
    backbone = wrap("bert")

    def add(bank, count):
        for number in range(count):
            task = make(backbone, "prompt", f"task {len(bank.tasks)}", head=Head(labels=("a", "b")))
            task.metrics, task.data = {"accuracy": number / 7}, {"max_length": 100 + number}
            bank.add(task)
        gc.collect()

    bank = TaskBank(backbone)
    add(bank, 2)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        add(bank, 40)
        each = (tracemalloc.get_traced_memory()[0] - before) / 40
    finally:
        tracemalloc.stop()
    assert each < 3000, "bytes of Python objects for each task; two nn.Modules of its own would be 4 KB more"


def test_stored_tasks_have_metrics_and_data_of_their_own_and_cannot_be_hooked():
    backbone = wrap("bert")
    bank = TaskBank(backbone, [make(backbone, "prompt", name, head=Head(labels=("a", "b"))) for name in "ab"])
    bank.tasks["a"].metrics["accuracy"] = 0.5
    bank.tasks["a"].data["max_length"] = 12
    assert (bank.tasks["b"].metrics, bank.tasks["b"].data) == ({}, {})
    with pytest.raises(TypeError, match="mappingproxy"):
        bank.tasks["a"].register_forward_hook(print)


def test_a_task_that_was_stored_can_be_trained_further():
    backbone = wrap("bert")
    task = make(backbone, "prompt", "one")
    batch, random_state = tiny.inputs("bert", rows=2), torch.random.get_rng_state()
    with torch.no_grad():
        want = TaskBank(backbone, [task])(batch, tasks="one")
    back = TaskBank(backbone, [task]).evict("one")
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert (type(back), type(back.head_module)) == (Task, HeadModule)
    live = TaskBank(backbone, [back.requires_grad_(True)])
    scores = live(batch, tasks="one")
    torch.testing.assert_close(scores.detach(), want, **CLOSE)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in back.parameters())


def test_a_frozen_task_answers_without_dropout_even_where_it_was_left_in_training_mode():
    backbone = wrap("bert")
    bank = TaskBank(backbone, [make(backbone, "prompt", "one", head=Head(labels=("a", "b"), dropout=0.9)).train()])
    batch = tiny.inputs("bert", rows=2)
    with torch.no_grad():
        assert torch.equal(bank(batch, tasks="one"), bank(batch, tasks="one"))
