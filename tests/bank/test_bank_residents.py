"""Who is resident in a bank: tasks that come, go and are refused, and errors, change nothing for the others."""

import dataclasses

import pytest
import torch

import tiny
from bank.mixed import CLOSE, mixed_bank
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError, TaskError
from intarsia.methods import BottleneckAdapter, LayerNormTuning
from intarsia.task import Task
from methods.every import HEAD, METHODS, new_task, stir, usable, wrap
from tiny import families


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
    with pytest.raises(TaskError, match=r"module at 'bias/pooler\.dense', which this class of the model lacks"):
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
