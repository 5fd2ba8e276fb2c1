"""The losses of one packed pass: the model once over all members' rows, then each form's head over its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia import ops
from intarsia.backbone import Backbone
from intarsia.backbone.ending import at_places
from intarsia.backbone.entrance import Prompts
from intarsia.heads import Head
from intarsia.losses import squares
from intarsia.methods import EmbeddingDelta
from intarsia.routing import OneRun, Route
from intarsia.task import Task
from intarsia.training.packed.layout import Layout


class PackedRoute(Route):
    """K rows, one a member, those of one form together. Prompts stand in slots that the layout has made for them."""

    def __init__(self, tasks: Sequence[tuple[Task, int]]) -> None:
        """tasks: with tensors (n, ...), and n."""
        rows = 0 if len(tasks) == 1 else sum(count for _, count in tasks)
        super().__init__([OneRun(task, count) for task, count in tasks], rows)
        self.counts = [count for _, count in tasks]

    def prompts(self, key: str, rows: int, device: torch.device) -> Prompts | None:
        """Vectors alone."""
        deltas = [delta if isinstance(delta, EmbeddingDelta) else None for delta in self._at(key)]
        made = [None if delta is None else delta() for delta in deltas]
        if not (some := [vectors for vectors in made if vectors is not None]):
            return None
        longest = max(vectors.shape[1] for vectors in some)
        parts = []
        for vectors, count in zip(made, self.counts, strict=True):
            own = some[0].new_zeros(count, 0, some[0].shape[2]) if vectors is None else vectors
            parts.append(F.pad(own, (0, 0, 0, longest - own.shape[1])))
        return Prompts(vectors=torch.cat(parts))


def losses(backbone: Backbone, tasks: Sequence[tuple[Task, int]], layout: Layout) -> Tensor:
    """The loss of each member, (K,). tasks: of each form, with tensors (n, ...), and n, in the order of the layout's members.

    For generation, under `Backbone.only(layout.read)`.
    """
    found = []
    for head, span, scores in answers(backbone, tasks, layout):
        labels, weights = (layout.here[name][span] for name in ("labels", "weights"))
        found.append((_each(head, scores, labels) * weights).sum(1))
    return torch.cat(found)


def answers(
    backbone: Backbone, tasks: Sequence[tuple[Task, int]], layout: Layout
) -> Iterator[tuple[Head, slice, Tensor]]:
    """Of each form: its head, whose members it has, and their fp32 scores: (n, R, C) of rows, or (n, Q, C) of places for token
    classification and generation. As `losses`; a task in training has its head's dropout."""
    here = layout.here
    batch = {"input_ids": here["ids"], "position_ids": here["positions"], "attention_mask": layout.mask}
    if "types" in here:
        batch["token_type_ids"] = here["types"]
    heads = [reading.head for reading in layout.readings]
    generates, by_place = heads[0].kind == "generation", all(head.reads_one for head in heads)
    if generates:
        read = backbone.word_scores(batch).view(*here["places"].shape, -1)
    else:
        read = backbone.states_at(batch, here["places"]) if by_place else backbone.features(batch)
    at = 0
    for task, count in tasks:
        span, at = slice(at, at + count), at + count
        own = {name: here[name][span] for name in ("owner", "places", "keys")}
        assert task.head is not None
        scores = read[span]
        if not generates:
            pooled = scores if by_place else _pooled(task, scores, own, layout.shape.rows)
            scores = _scores(task, pooled, own["keys"], backbone.pooler)
        yield task.head, span, scores


def _pooled(task: Task, states: Tensor, own: dict[str, Tensor], rows: int) -> Tensor:
    """What the head reads of the states (n, S, D): (n, R, D), or (n, Q, D)."""
    assert task.head is not None
    assert task.head_module is not None
    if task.head.kind == "token-classification" or task.head.pooling != "mean":
        return at_places(states, own["places"])
    return ops.row_means(states, own["owner"], rows, task.head_module.weight.dtype)


def _scores(task: Task, pooled: Tensor, keys: Tensor, pooler: Any) -> Tensor:
    """fp32 scores (n, R, C) of rows, or (n, Q, C) for token classification. pooled: from `_pooled`; keys: (n,), of dropout."""
    module, head = task.head_module, task.head
    assert module is not None
    assert head is not None
    if head.pooling == "pooler" and head.kind != "token-classification":
        pooled = pooler(pooled.flatten(0, 1)[:, None]).view(pooled.shape)
    pooled = pooled.to(module.weight.dtype)
    if head.dropout and task.training:
        pooled = ops.keyed_dropout(pooled, head.dropout, keys)
    return head.in_units(ops.linear(pooled, module.weight, module.bias))


def _each(head: Head, scores: Tensor, labels: Tensor) -> Tensor:
    """The loss of each place, (n, Q)."""
    if head.kind == "multi-label":
        return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), reduction="none").mean(-1)
    if head.kind == "regression":
        return squares(head, scores, labels)
    return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
