"""The property that the library rests on: a row does not depend on its neighbours."""

import dataclasses
import random

import pytest
import torch

import tiny
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError, IntarsiaError, TaskError
from intarsia.heads import Head
from intarsia.methods import BitFit, BottleneckAdapter, LayerNormTuning
from intarsia.task import Task
from methods.every import HEAD, METHODS, PROMPTED, new_task, row, stir, usable, wrap

families = pytest.mark.parametrize("family", tiny.FAMILIES)
TEXT = tuple(f for f in tiny.FAMILIES if f != "vit")
CLOSE = {"rtol": 0, "atol": 1e-5}


def mixed_bank(family, **changes):
    """A bank with a task of every method (heads of different sizes, one without a head)."""
    backbone = wrap(family, **changes)
    names = usable(backbone)
    tasks = [
        new_task(backbone, m, head=Head(labels=tuple("abcde"[: 2 + i % 3])) if i % 4 else None)
        for i, m in enumerate(names)
    ]
    return TaskBank(backbone, tasks), names


def padded(family, side, rows, tokens=9):
    """Rows of unequal length, padded on one side."""
    batch = tiny.inputs(family, rows=rows, tokens=tokens)
    if family == "vit":
        return batch
    pad = tiny.config(family).pad_token_id or 0
    for index in range(rows):
        cut = index % 4
        where = slice(0, cut) if side == "left" else slice(tokens - cut, tokens)
        batch["input_ids"][index, where] = pad
        batch["attention_mask"][index, where] = 0
    return batch


def real(tensor, batch, index):
    """The states of a row's real tokens: what attention makes of padding is nobody's."""
    mask = batch.get("attention_mask")
    if mask is None or tensor.dim() != 2 or "decoder_input_ids" in batch or tensor.shape[0] != mask.shape[1]:
        return tensor
    return tensor[mask[index].bool()]


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


@families
def test_a_task_does_not_depend_on_which_others_are_resident_or_came_first(family):
    backbone = wrap(family)
    batch = tiny.inputs(family)
    names = usable(backbone)
    tasks = {name: new_task(backbone, name) for name in names}
    alone = {}
    with torch.no_grad():
        for name in names:
            bank = TaskBank(backbone, [tasks[name]])
            alone[name] = bank(batch, tasks=name)
            bank.detach()
        for order in (names, names[::-1], sorted(names)):
            bank = TaskBank(backbone, [tasks[name] for name in order])
            for name in names:
                torch.testing.assert_close(
                    bank(batch, tasks=name), alone[name], **CLOSE, msg=lambda m, n=name: f"{n}: {m}"
                )
            bank.detach()


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


def test_evicting_and_adding_between_calls_leaves_the_others_as_they_were():
    bank, names = mixed_bank("bert")
    batch = tiny.inputs("bert", rows=3)
    with torch.no_grad():
        expected = bank(batch, tasks=["lora", "serial", None])
        for gone in [n for n in names if n not in ("lora", "serial")]:
            task = bank.evict(gone)
            for one, other in zip(bank(batch, tasks=["lora", "serial", None]), expected, strict=True):
                torch.testing.assert_close(one, other, **CLOSE)
            if gone == "full":
                bank.add(task)
                bank.evict("full")
    assert set(bank.tasks) == {"lora", "serial"}


def test_a_task_that_was_evicted_may_come_back_and_another_take_its_name():
    backbone = wrap("bert")
    task = new_task(backbone, "serial", name="t")
    bank = TaskBank(backbone, [task])
    batch = tiny.inputs("bert")
    with torch.no_grad():
        expected = bank(batch, tasks="t")
        assert bank.evict("t") is task
        bank.add(stir(Task.new("t", backbone, METHODS["lora"], HEAD)).eval())
        assert not torch.equal(bank(batch, tasks="t"), expected)
        bank.evict("t")
        bank.add(task)
        assert torch.equal(bank(batch, tasks="t"), expected)


def bad_calls():
    batch = tiny.inputs("bert")
    other = wrap("bert", seed=5)
    return {
        "name twice": (lambda bank: bank.add(new_task(bank.backbone, "lora")), TaskError, "already holds"),
        "unknown to evict": (lambda bank: bank.evict("lorra"), TaskError, "did you mean 'lora'?"),
        "unknown for a batch": (lambda bank: bank(batch, tasks="sreial"), TaskError, "did you mean 'serial'?"),
        "unknown for a row": (lambda bank: bank(batch, tasks=["lora", "nobody", None]), TaskError, "no task 'nobody'"),
        "unknown to activate": (lambda bank: bank.activate("nobody"), TaskError, "no task 'nobody'"),
        "too few names": (lambda bank: bank(batch, tasks=["lora"]), ConfigError, "3 rows but 1 task names"),
        "another backbone": (lambda bank: bank.add(new_task(other, "full", name="f")), TaskError, "made for backbone"),
    }


@pytest.mark.parametrize("case", list(bad_calls()))
def test_a_bad_call_is_one_clear_line_and_the_bank_goes_on(case):
    call, kind, fragment = bad_calls()[case]
    bank, _ = mixed_bank("bert")
    batch = tiny.inputs("bert")
    with torch.no_grad():
        expected = bank(batch, tasks="lora")
        with pytest.raises(kind) as error:
            call(bank)
        assert fragment in str(error.value)
        assert "\n" not in str(error.value)
        assert torch.equal(bank(batch, tasks="lora"), expected)


def test_a_task_with_sites_that_this_class_of_the_model_lacks_is_refused_and_the_bank_goes_on():
    # The pooler is not part of the fingerprint: one checkpoint has it or not, depending on the class.
    with_pooler = wrap("bert")
    without = Backbone.wrap(type(with_pooler.model)(with_pooler.model.config, add_pooling_layer=False))
    without.model.load_state_dict(with_pooler.model.state_dict(), strict=False)
    without = Backbone.wrap(without.model)
    assert without.fingerprint == with_pooler.fingerprint
    task = new_task(with_pooler, "bitfit", name="p", head=dataclasses.replace(HEAD, pooling="pooler"))
    bank = TaskBank(without, [new_task(without, "lora")])
    with pytest.raises(IntarsiaError):
        bank.add(task)
    assert set(bank.tasks) == {"lora"}
    bank.detach()
    assert not any(m._forward_hooks for m in without.model.modules())


def test_two_banks_on_one_backbone_do_not_meet():
    backbone = wrap("bert")
    batch = tiny.inputs("bert")
    one, two = TaskBank(backbone, [new_task(backbone, "serial")]), TaskBank(backbone, [new_task(backbone, "lora")])
    with torch.no_grad():
        both = one(batch, tasks="serial"), two(batch, tasks="lora")
        two.detach()
        assert torch.equal(one(batch, tasks="serial"), both[0])
        one.detach()


def test_an_error_in_the_middle_of_a_pass_leaves_the_backbone_as_it_was():
    backbone = wrap("bert")
    batch = tiny.inputs("bert")
    bank = TaskBank(backbone, [new_task(backbone, "full"), new_task(backbone, "serial")])
    values = {n: (p, p.clone()) for n, p in backbone.model.named_parameters()}
    with torch.no_grad():
        plain = bank(batch, tasks=[None] * 3)

        def fail(*_):
            raise RuntimeError("in the middle")

        handle = backbone.base.get_submodule("encoder.layer.1.attention.self.key").register_forward_pre_hook(fail)
        for name in ("full", "serial"):
            with pytest.raises(RuntimeError, match="in the middle"):
                bank(batch, tasks=name)
        handle.remove()
        assert {n: id(p) for n, p in backbone.model.named_parameters()} == {n: id(p) for n, (p, _) in values.items()}
        assert all(torch.equal(p, old) for p, old in values.values())
        for one, other in zip(bank(batch, tasks=[None] * 3), plain, strict=True):
            assert torch.equal(one, other)


def test_a_trained_norm_that_ends_a_sublayer_comes_before_its_adapter_whoever_is_resident():
    # Gemma 2's post norms are both a norm's site and an adapter's: hooks of two kinds on one module.
    backbone = wrap("gemma2")
    batch = tiny.inputs("gemma2")
    adapter = stir(Task.new("a", backbone, BottleneckAdapter(width=5)))
    with torch.no_grad():
        bank = TaskBank(backbone, [adapter])
        first = bank(batch, tasks="a")
        bank.detach()
        bank = TaskBank(backbone, [stir(Task.new("n", backbone, LayerNormTuning())), adapter])
        torch.testing.assert_close(bank(batch, tasks="a"), first, **CLOSE)


def test_bitfit_alone_in_a_bank_counts_no_row_twice():
    backbone = wrap("gpt2")
    bank = TaskBank(backbone, [stir(Task.new("b", backbone, BitFit(), HEAD)).eval()])
    batch = tiny.inputs("gpt2", rows=4)
    with torch.no_grad():
        whole = bank(batch, tasks="b")
        torch.testing.assert_close(torch.stack(bank(batch, tasks=["b"] * 4)), whole, **CLOSE)
