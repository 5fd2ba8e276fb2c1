"""Packs whose heads read one state of each row."""

import pytest
import torch
from test_packed import LABELS, METHODS, TOL, backbone_of, gradients_alone, members_of, pack

from intarsia.heads import Head
from intarsia.methods import BottleneckAdapter
from intarsia.training.packed.stepper import PackedStepper


@pytest.mark.parametrize(
    "poolings", [("cls", "cls", "cls"), ("cls", "pooler", "last"), ("cls", "mean", "cls")], ids=str
)
def test_only_the_states_that_heads_read_go_behind_the_last_attention(poolings, tmp_path):
    """By themselves, members read the whole pass here."""
    backbone, seen = backbone_of("bert"), []
    ending, backbone.__dict__["ending"] = backbone.ending, None
    down = backbone.base.encoder.layer[-1].output.dense
    down.register_forward_hook(lambda _module, args, _y: seen.append(args[0].shape[1]))
    heads = [Head(labels=LABELS, dropout=0.0, pooling=pooling) for pooling in poolings]
    methods = [METHODS["adapter"], BottleneckAdapter(width=4, parallel=True), METHODS["prompt"]]
    bank, entries = pack(backbone, methods, heads, tmp_path / "pack", clip=0.0)
    members = members_of(bank, entries)
    expected = [gradients_alone(member) for member in members]
    seen.clear()
    backbone.__dict__["ending"] = ending
    bank, entries = pack(backbone, methods, heads, tmp_path / "again", clip=0.0)
    stepper, caught = PackedStepper(members_of(bank, entries)), []
    for stack in stepper.stacks:
        stack.update = lambda gradients, numbers, stack=stack, own=stack.update: (
            caught.append(dict(zip(stack.leaves, gradients, strict=True))),
            own(gradients, numbers),
        )[1]
    stepper.step()
    rows = stepper.layout.shape.rows
    assert all(width > 2 * rows for width in seen) if "mean" in poolings else set(seen) == {rows}
    for stack, gradients in zip(stepper.stacks, caught, strict=True):
        for row, member in enumerate(stack.members):
            want = expected[int(member.task.name[1:])]
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient[row], want[name][0], **TOL, msg=name)
