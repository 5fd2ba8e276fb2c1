"""Who takes the steps: gradients and optimizer for one member, or for several at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from intarsia.errors import DataError
from intarsia.staged import to_device
from intarsia.training.evaluation import Scores
from intarsia.training.optim import OptimizerState, build_optimizer, load_optimizer_state, optimizer_state, trained
from intarsia.training.reusing import Ready, as_it_is
from intarsia.training.source import weight

if TYPE_CHECKING:
    from intarsia.training.member import Member


class Stepper(Protocol):
    """Takes the steps of some members. What they and the optimizer then are does not depend on who else is there."""

    @property
    def members(self) -> Sequence[Member]:
        """Whose steps it takes."""
        ...

    def step(self) -> None:
        """One optimizer step of each member, over its next batches; tells them by `stepped`."""
        ...

    def evaluate(self, member: Member, tick: Callable[[], None]) -> Scores:
        """Its scores on its validation rows, as it is now. tick: called after each batch."""
        ...

    def test(self, ended: Sequence[Member]) -> None:
        """Scores members whose last step this was on their test rows, with their best weights, if it can do so for several at once.
        What it can it tells them by `tested`."""
        ...

    def optimizer_state(self, member: Member) -> OptimizerState:
        """As it is now."""
        ...

    def close(self) -> None:
        """Gives the members their optimizer state back; another stepper can go on."""
        ...


class PlainStepper:
    """One member, batch after batch as its source gives them. Works for every method, optimizer, backbone and device."""

    def __init__(self, member: Member, ready: Ready = as_it_is) -> None:
        """ready: makes a source's batch into one for the bank."""
        self.member, self.ready = member, ready
        self.torch_optimizer = build_optimizer(member.task, member.settings)
        load_optimizer_state(self.torch_optimizer, member.task, member.optimizer)
        self.parameters = list(trained(member.task).values())
        member.stepper = self

    @property
    def members(self) -> tuple[Member]:
        """The one."""
        return (self.member,)

    def step(self) -> None:
        """One step over `accumulate` batches (fewer at the end of an epoch), each weighted by its labels."""
        member, settings = self.member, self.member.settings
        if not member.task.training:
            member.task.train()
        member.bank.backbone.train_mode(bool(settings.backbone_dropout))
        rate = member.rate(member.state.step)
        for group in self.torch_optimizer.param_groups:
            group["lr"] = rate * group["share"]
        keys = member.keys()
        loaded = [member.source.load(key) for key in keys]
        counts = [weight(member.task.head, labelled(labels)) for _, labels in loaded]
        loss = torch.zeros((), device=member.device)
        with member.own_random():
            for (batch, labels), count in zip(loaded, counts, strict=True):
                if count:  # Without a label there is nothing to learn.
                    loss = loss + self._backward(batch, labelled(labels), count / sum(counts))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip or math.inf)
        self.torch_optimizer.step()
        self.torch_optimizer.zero_grad(set_to_none=True)
        seen = torch.stack((loss.float(), norm.float()))
        member.stepped(seen, sum(member.source.tokens(key) for key in keys))

    def _backward(self, batch: dict[str, Tensor], labels: Tensor, share: float) -> Tensor:
        member = self.member
        moved = {name: to_device(x, member.device) for name, x in self.ready(batch).items()}
        loss = member.bank.loss(moved, to_device(labels, member.device), task=member.name) * share
        loss.backward()
        return loss.detach()

    def evaluate(self, member: Member, tick: Callable[[], None]) -> Scores:
        """Batch after batch."""
        return member.scores(tick, self.ready)

    def test(self, ended: Sequence[Member]) -> None:
        """There is one only."""

    def optimizer_state(self, member: Member) -> OptimizerState:
        """As torch's optimizer has it."""
        return optimizer_state(self.torch_optimizer, member.task)

    def close(self) -> None:
        """The member has its state back, and no gradients."""
        self.member.optimizer, self.member.stepper = self.optimizer_state(self.member), None
        self.torch_optimizer.zero_grad(set_to_none=True)


def labelled(labels: Tensor | None) -> Tensor:
    """The labels; DataError where there are none."""
    if labels is None:
        raise DataError("training needs labels, and these rows have none; give a file with a label column")
    return labels
