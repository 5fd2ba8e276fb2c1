"""What the doctor looks at: a method on a backbone, with a batch of texts of unequal length."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError, UnsupportedError
from intarsia.heads import Head
from intarsia.methods import Method
from intarsia.methods.base import KeyValueDelta
from intarsia.rows import room
from intarsia.task import Task

Status = Literal["pass", "fail", "not supported"]
Outcome = tuple[Status, str]
TEXTS = ("A short one.", "This sentence is a good deal longer than the one before it.", "Two.")
TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, that rounding in fp32 explains."""


@dataclass
class Patient:
    """A method on a backbone. `batch` is made to fit a prompt that stands in a template's slots."""

    backbone: Backbone
    method: Method
    batch: dict[str, Tensor]
    task: Task = field(init=False)

    def __post_init__(self) -> None:
        self.task = self.new(Head(labels=("no", "yes"), dropout=0.0))
        left, longest = room(self.task, self.backbone), self.batch["input_ids"].shape[1]
        if longest > left:
            raise UnsupportedError(
                f"{self.backbone.name} has {self.backbone.max_length} positions, too few for a text of {longest} tokens and "
                f"{self.backbone.max_length - left} virtual ones; lower method.length"
            )
        if self.in_template:
            assert self.task.prompt is not None
            self.batch = _with_slots(self.batch, self.task.prompt.length)

    def new(self, head: Head, name: str = "probe") -> Task:
        """A task whose tensors have all moved: a tensor at zero can hide its neighbours' gradients and a mistake in saving."""
        task = Task.new(name, self.backbone, self.method, head)
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in task.parameters():
                noise = torch.randn(tensor.shape, generator=g).to(tensor.device)
                tensor.add_(noise * 0.02 * tensor.abs().mean().clamp(min=0.5))
        return task.eval()

    @property
    def extends(self) -> bool:
        """Whether the method puts virtual tokens or positions before the text."""
        return self.task.prompt is not None or any(isinstance(d, KeyValueDelta) for d in self.task.deltas.values())

    @property
    def in_template(self) -> bool:
        """Whether its prompt stands in the row's own slots."""
        return self.task.prompt is not None and self.task.prompt.place == "template"

    @contextmanager
    def bank(self, *tasks: Task) -> Iterator[TaskBank]:
        """A bank that leaves no hook behind."""
        bank = TaskBank(self.backbone, tasks)
        try:
            yield bank
        finally:
            bank.detach()

    def scores(self, task: Task, batch: Mapping[str, Tensor] | None = None) -> Tensor:
        """(B, 2) scores of a task, hooked only for this call."""
        with self.bank(task) as bank:
            return bank(self.batch if batch is None else batch, tasks=task.name)

    def row(self, row: int) -> dict[str, Tensor]:
        """One row of the batch without its padding."""
        mask = self.batch["attention_mask"][row].bool()
        return {key: value[row : row + 1, mask] for key, value in self.batch.items()}


def tokens(backbone: Backbone) -> dict[str, Tensor]:
    """The texts as the tokenizer gives them, padded; ConfigError where it makes equal lengths of them."""
    # Only what the model is given in training: some tokenizers return more.
    encoded = backbone.tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    batch = {
        key: encoded[key].to(backbone.device)
        for key in ("input_ids", "attention_mask", "token_type_ids")
        if key in encoded
    }
    if batch["attention_mask"].all():
        raise ConfigError(
            f"the tokenizer of {backbone.name!r} makes equal lengths of unequal texts; is it the model's own?"
        )
    return batch


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value; masked places of states are compared too."""
    return ((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-12)).item()


def _with_slots(batch: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """The batch with the prompt's slots in each row, where no padding is: after the first column, or behind the last."""
    left = not bool(batch["attention_mask"][:, 0].all())
    at = batch["input_ids"].shape[1] if left else 1
    found = {}
    for key, value in batch.items():
        slots = value.new_zeros(len(value), length)
        if key == "input_ids":
            slots = slots - 1 - torch.arange(length, device=value.device)
        elif key == "attention_mask":
            slots = slots + 1
        found[key] = torch.cat([value[:, :at], slots, value[:, at:]], dim=1)
    return found
