"""The property that the library rests on: a row does not depend on its neighbours."""

import dataclasses
import random

import pytest
import torch

import tiny
from bank.mixed import CLOSE, TEXT, mixed_bank, padded, real
from intarsia.bank import TaskBank
from intarsia.heads import Head
from intarsia.methods import BitFit
from intarsia.task import Task
from methods.every import HEAD, PROMPTED, new_task, row, stir, wrap
from tiny import families


@families
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_row_does_not_depend_on_its_neighbours(family, side):
    bank, names = mixed_bank(family)
    shuffle = random.Random(f"{family} {side}")
    batch = padded(family, side, rows=14)
    batch.pop("decoder_input_ids", None)
    with torch.no_grad():
        plain = bank.backbone.features(batch)
        for _ in range(2):
            tasks = [shuffle.choice([*names, None]) for _ in range(14)]
            together = bank(batch, tasks=tasks)
            for index, name in enumerate(tasks):
                alone = bank(row(batch, index), tasks=[name])[0]
                where = f"{family}, row {index} ({name})"
                torch.testing.assert_close(
                    real(together[index], batch, index),
                    real(alone, batch, index),
                    **CLOSE,
                    msg=lambda m, where=where: f"{where}: {m}",
                )
                if name is None:
                    untouched = real(plain[index], batch, index)
                    torch.testing.assert_close(real(together[index], batch, index), untouched, **CLOSE)
                else:
                    whole = bank(batch, tasks=name)[index]
                    torch.testing.assert_close(real(whole, batch, index), real(together[index], batch, index), **CLOSE)


@families
def test_what_is_written_in_place_equals_what_is_computed_for_gradients(family):
    # In place nothing may be lost that the model still needs: a module that put out its own input would give itself away here.
    bank, names = mixed_bank(family)
    batch = padded(family, "right", rows=6)
    batch.pop("decoder_input_ids", None)
    some = names[:: max(1, len(names) // 4)]
    for tasks in ([some[i % len(some)] for i in range(6)], *([name] * 6 for name in names)):
        wanted = bank(batch, tasks=tasks)
        with torch.no_grad():
            made = bank(batch, tasks=tasks)
        for index, name in enumerate(tasks):
            torch.testing.assert_close(
                made[index], wanted[index].detach(), **CLOSE, msg=lambda m, n=name: f"{family}, {n}: {m}"
            )


@pytest.mark.parametrize("family", TEXT)
def test_padding_on_the_right_changes_no_prediction(family):
    bank, names = mixed_bank(family)
    batch = padded(family, "right", rows=len(names))
    batch.pop("decoder_input_ids", None)
    with torch.no_grad():
        together = bank(batch, tasks=list(names))
        for index, name in enumerate(names):
            if bank.tasks[name].head is None:
                continue
            length = int(batch["attention_mask"][index].sum())
            alone = bank({k: v[index : index + 1, :length] for k, v in batch.items()}, tasks=[name])[0]
            torch.testing.assert_close(together[index], alone, **CLOSE)


# Bart counts positions from the left edge of the batch, and so do most encoders: their tokenizers pad on the right.
LEFT = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "smollm3",
    "phi3",
    "gpt_neox",
    "opt",
    "gpt2",
    "t5",
)


@pytest.mark.parametrize("family", LEFT)
def test_padding_on_the_left_changes_no_prediction(family):
    # How much padding a row gets depends on its neighbours, so this is the same property once more.
    bank, names = mixed_bank(family)
    batch = padded(family, "left", rows=len(names))
    batch.pop("decoder_input_ids", None)
    with torch.no_grad():
        together = bank(batch, tasks=list(names))
        for index, name in enumerate(names):
            if bank.tasks[name].head is None:
                continue
            length = int(batch["attention_mask"][index].sum())
            alone = bank({k: v[index : index + 1, -length:] for k, v in batch.items()}, tasks=[name])[0]
            torch.testing.assert_close(together[index], alone, **CLOSE)


def test_results_come_in_the_order_of_the_rows():
    bank, names = mixed_bank("bert")
    batch = tiny.inputs("bert", rows=6)
    tasks = [names[1], None, names[2], names[1], names[3], names[2]]
    with torch.no_grad():
        forward = bank(batch, tasks=tasks)
        backward = bank({k: v.flip(0) for k, v in batch.items()}, tasks=tasks[::-1])
    for one, other in zip(forward, backward[::-1], strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_an_empty_batch_gives_no_results():
    bank, _ = mixed_bank("bert")
    batch = {k: v[:0] for k, v in tiny.inputs("bert").items()}
    assert bank(batch, tasks=[]) == []


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_gradients_of_a_mixed_batch_are_those_of_each_row_alone(family):
    bank, names = mixed_bank(family)
    batch = tiny.inputs(family, rows=2 * len(names))
    tasks = names * 2

    def gradients(run):
        for task in bank.tasks.values():
            task.zero_grad()
        run()
        return {n: {k: p.grad for k, p in t.named_parameters() if p.grad is not None} for n, t in bank.tasks.items()}

    together = gradients(lambda: sum(out.sum() for out in bank(batch, tasks=tasks)).backward())
    alone = gradients(lambda: [bank(row(batch, i), tasks=[n])[0].sum().backward() for i, n in enumerate(tasks)])
    for name in names:
        assert together[name].keys() == alone[name].keys()
        for key, grad in together[name].items():
            torch.testing.assert_close(grad, alone[name][key], rtol=1e-4, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_gradients_of_prefixes_of_unequal_lengths_are_those_of_each_row_alone(family):
    backbone = wrap(family)
    tasks = [stir(Task.new(name, backbone, PROMPTED[name], HEAD).eval()) for name in ("prefix", "prefix flat")]
    bank = TaskBank(backbone, [*tasks, new_task(backbone, "lora")])
    names = ["prefix", "lora", "prefix flat", "prefix", "prefix flat"]
    batch = tiny.inputs(family, rows=len(names))
    sum(out.sum() for out in bank(batch, tasks=names)).backward()
    together = {(task.name, key): p.grad.clone() for task in tasks for key, p in task.named_parameters()}
    for task in tasks:
        task.zero_grad()
    for index, name in enumerate(names):
        bank(row(batch, index), tasks=[name])[0].sum().backward()
    for task in tasks:
        for key, parameter in task.named_parameters():
            want = together[task.name, key]
            torch.testing.assert_close(parameter.grad, want, rtol=1e-4, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("method", ["bitfit", "full", "serial"])
def test_rows_that_read_the_pretrained_pooler_mix_with_others(method):
    backbone = wrap("bert")
    head = dataclasses.replace(HEAD, pooling="pooler")
    pooled = new_task(backbone, method, name="pooled", head=head)
    bank = TaskBank(backbone, [pooled, new_task(backbone, "lora"), new_task(backbone, "serial")])
    batch = tiny.inputs("bert", rows=6)
    tasks = ["lora", "pooled", None, "pooled", "serial", "lora"]
    with torch.no_grad():
        together = bank(batch, tasks=tasks)
        for index, name in enumerate(tasks):
            torch.testing.assert_close(together[index], bank(row(batch, index), tasks=[name])[0], **CLOSE)


def test_token_classification_mixes_with_texts():
    backbone = wrap("bert")
    tokens = new_task(backbone, "serial", name="tokens", head=Head(kind="token-classification", labels=("O", "B")))
    bank = TaskBank(backbone, [tokens, new_task(backbone, "lora")])
    batch = tiny.inputs("bert", rows=3)
    with torch.no_grad():
        out = bank(batch, tasks=["tokens", "lora", "tokens"])
        assert [tuple(o.shape) for o in out] == [(7, 2), (3,), (7, 2)]
        torch.testing.assert_close(out[2], bank(batch, tasks="tokens")[2], **CLOSE)


def test_bitfit_alone_in_a_bank_counts_no_row_twice():
    backbone = wrap("gpt2")
    bank = TaskBank(backbone, [stir(Task.new("b", backbone, BitFit(), HEAD)).eval()])
    batch = tiny.inputs("gpt2", rows=4)
    with torch.no_grad():
        whole = bank(batch, tasks="b")
        torch.testing.assert_close(torch.stack(bank(batch, tasks=["b"] * 4)), whole, **CLOSE)
