"""The packed path in half precision, and the norms that it computes in one pass."""

import copy

import pytest
import torch
from test_packed import LABELS, MEAN, METHODS, backbone_of, members_of, pack

import tiny
from intarsia.backbone import Backbone
from intarsia.heads import Head
from intarsia.methods import BottleneckAdapter
from intarsia.sites import Role
from intarsia.training.packed.stepper import PackedStepper


def test_what_the_model_computes_with_follows_the_weights(tmp_path):
    backbone = Backbone.wrap(tiny.build("bert").bfloat16())
    bank, entries = pack(backbone, [BottleneckAdapter(width=3)] * 2, [MEAN] * 2, tmp_path, learning_rate=0.01)
    for entry in entries:
        entry.task.float()
    stepper = PackedStepper(members_of(bank, entries))
    (stack,) = stepper.stacks
    before = stack.master.clone()
    for _ in range(3):
        stepper.step()
        assert torch.equal(stack.low, stack.master[:, : stack.low.shape[1]].bfloat16())
    assert stack.low.shape[1]
    assert not torch.equal(before, stack.master)
    # Matrices in half precision, vectors and the head as they are.
    low = {name for name, leaf in stack.leaves.items() if leaf.dtype == torch.bfloat16}
    assert low == {name for name in stack.leaves if name.endswith((".down", ".up"))}
    stepper.close()


def test_a_norm_that_a_member_trains_is_computed_once(tmp_path, monkeypatch):
    backbone = backbone_of("bert")
    norm = next(module for module in backbone.base.modules() if isinstance(module, torch.nn.LayerNorm))
    ran, whole = [], torch.nn.LayerNorm.forward
    monkeypatch.setattr(torch.nn.LayerNorm, "forward", lambda self, x: (ran.append(self), whole(self, x))[1])
    for methods, times in (("adapter norms", 0), ("adapter lora", 0), ("lora head", 1)):
        chosen = [METHODS[name] for name in methods.split()]
        bank, entries = pack(backbone, chosen, [MEAN] * 2, tmp_path / methods)
        stepper = PackedStepper(members_of(bank, entries))
        stepper.step()
        assert sum(one is norm for one in ran) == times
        stepper.close()
        bank.detach()
        assert "forward" not in norm.__dict__


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "phi3"])
def test_the_norms_of_half_precision_are_one_kernel_where_that_is_the_same(family, tmp_path, monkeypatch):
    wide = Backbone.wrap(tiny.build(family))
    narrow = Backbone.wrap(copy.deepcopy(wide.model).bfloat16())
    head = Head(labels=LABELS, dropout=0.0, pooling="mean")
    methods, seen = [METHODS["lora"], METHODS["adapter"]], []
    kinds = {type(narrow.base.get_submodule(site.module)) for site in narrow.sites if site.role is Role.NORM}
    ran = []
    for index, backbone in enumerate((wide, narrow)):
        bank, entries = pack(backbone, methods, [head] * 2, tmp_path / str(index))
        for entry in entries:
            entry.task.float()
        members = members_of(bank, entries)
        told = {}
        for member in members:
            member.stepped = lambda seen, tokens, name=member.name, told=told: told.update({name: seen})
        stepper = PackedStepper(members)
        with monkeypatch.context() as patched:
            for kind in kinds if backbone is narrow else ():
                own = kind.forward
                patched.setattr(kind, "forward", lambda self, x, own=own: (ran.append(self), own(self, x))[1])
            stepper.step()
        stepper.close()
        seen.append(torch.stack([told[member.name] for member in members]))
    torch.testing.assert_close(seen[1], seen[0], rtol=0.05, atol=0.02)
    run = [norm for norm in ran if norm.weight.dtype == torch.bfloat16]  # the others are copies that were tried
    assert bool(run) == (family == "gemma")  # which adds 1 to the weight
