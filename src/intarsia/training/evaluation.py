"""A task's answers on a batch source, and their scores."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intarsia.errors import DataError
from intarsia.rows import decide
from intarsia.training.generating import Writing, written
from intarsia.training.metrics import compute_metrics
from intarsia.training.reusing import Ready, as_it_is
from intarsia.training.source import IGNORED, BatchSource, weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """One entry per row, in the order of the source's plan (the caller knows which row that is)."""

    scores: list[np.ndarray]
    """classification: (C,) probabilities; multi-label: (C,) probabilities; regression: () the value;
    token-classification: (T, C) probabilities of every position, padding included; generation: none."""
    predictions: list[Any]
    """classification: class index; multi-label: (C,) of 0 and 1; regression: float; token-classification: (T,);
    generation: the text, where text was asked for."""
    metrics: dict[str, float] = field(default_factory=dict)
    """With `loss`; empty where the rows have no labels. Of regression all but `loss` are in the labels' units."""


def evaluate(
    bank: Any,
    task: Any,
    source: BatchSource,
    *,
    tick: Callable[[], None] | None = None,
    writing: Writing | None = None,
    ready: Ready = as_it_is,
) -> Scores:
    """Answers and metrics of `task` on all rows of the source's plan. DataError where rows have no labels.

    tick: called after each batch, also of the second pass that generates. writing: generation only, and needs a
    GenerationSource: text is generated and scored too; without it there is the loss alone. ready: makes a source's batch into one
    for the bank. Dropout is off meanwhile; random
    numbers are neither used nor changed.
    """
    if task.head.kind == "generation":
        return _evaluate_generation(bank, task, source, tick, writing)
    with evaluating(bank, task):
        return measured(task, _run(bank, task, source, tick, ready))


def measured(task: Any, answered: Iterable[tuple[Tensor, Tensor | None]]) -> Scores:
    """Of logits (B, C), or (B, T, C), and labels, batch by batch. DataError where rows have no labels."""
    answers, labels, losses = [], [], []
    for logits, y in answered:
        y = _labelled(y)
        answers.append(logits)
        labels.append(y)
        losses.append((task.loss(logits, y).item(), weight(task.head, y)))
    kind = task.head.kind
    loss = mean_loss(losses)
    result = _scores(kind, answers)
    predicted, references = _pairs(kind, result.predictions, labels)
    metrics = compute_metrics(kind, predicted, references, task.head.labels) | {"loss": loss}
    return Scores(scores=result.scores, predictions=result.predictions, metrics=metrics)


def predict(
    bank: Any,
    task: Any,
    source: BatchSource,
    *,
    tick: Callable[[], None] | None = None,
    writing: Writing | None = None,
) -> Scores:
    """Answers without metrics; labels are not needed, and not looked at. writing: as the task says, where it is not given."""
    with evaluating(bank, task):
        if task.head.kind == "generation":
            writing = writing or Writing.of(task, bank.backbone)
            return Scores(
                scores=[], predictions=[x for _, texts in written(bank, task, source, writing, tick) for x in texts]
            )
        return _scores(task.head.kind, [logits for logits, _ in _run(bank, task, source, tick)])


def _evaluate_generation(
    bank: Any, task: Any, source: Any, tick: Callable[[], None] | None, writing: Writing | None
) -> Scores:
    """The loss over all target tokens (or sentences), then the scores of generated text."""
    losses = []
    with evaluating(bank, task):
        for key in source.plan(0):
            batch, labels = source.load(key)
            labels = _labelled(labels)
            loss = bank.loss(batch, labels, task=task.name)
            losses.append((loss.item(), weight(task.head, labels)))
            if tick is not None:
                tick()
        mean = {"loss": mean_loss(losses)}
        if writing is None:
            return Scores(scores=[], predictions=[], metrics=mean)
        texts, references = [], []
        for key, found in written(bank, task, source, writing, tick):
            texts += found
            references += source.references(key)
    metrics = compute_metrics("generation", texts, references, task.head.labels, writing.metrics)
    return Scores(scores=[], predictions=texts, metrics=metrics | mean)


def _labelled(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise DataError("evaluation needs labels, and these rows have none; give a file with a label column")
    return labels


def mean_loss(losses: Sequence[tuple[float, int]]) -> float:
    """The mean over all labels, of batches' means and how many labels each has. A batch without one labelled word has no
    weight."""
    if not losses:
        raise DataError("evaluation needs at least one row, got none")
    return sum(loss * n for loss, n in losses if n) / max(1, sum(n for _, n in losses))


@contextmanager
def evaluating(bank: Any, task: Any) -> Iterator[None]:
    """No gradients, and dropout off in the task and the trunk; afterwards the task is in the mode it was in."""
    training = task.training
    task.eval()
    bank.backbone.train_mode(False)
    try:
        with torch.no_grad():
            yield
    finally:
        task.train(training)


def _run(
    bank: Any, task: Any, source: BatchSource, tick: Callable[[], None] | None, ready: Ready = as_it_is
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Logits on the CPU and labels, batch by batch; the GPU works on a batch while the one before it is looked at."""
    waiting: tuple[Tensor, Tensor | None] | None = None
    for key in source.plan(0):
        batch, labels = source.load(key)
        logits = bank(ready(batch), tasks=task.name)
        if waiting is not None:
            yield waiting[0].cpu(), waiting[1]
        waiting = (logits, labels)
        if tick is not None:
            tick()
    if waiting is not None:
        yield waiting[0].cpu(), waiting[1]


def _scores(kind: str, answers: list[Tensor]) -> Scores:
    """answers: logits (B, C), or (B, T, C) with T of the batch."""
    both = [decide(kind, logits) for logits in answers]
    return Scores(scores=[s for scores, _ in both for s in scores], predictions=[p for _, found in both for p in found])


def _pairs(kind: str, predictions: list[Any], labels: list[Tensor]) -> tuple[list[Any], list[Any]]:
    """Predictions and references as `compute_metrics` takes them: of labelled words only."""
    references = [row.numpy() for batch in labels for row in batch]
    if kind != "token-classification":
        return predictions, references
    kept = [row != IGNORED for row in references]
    return (
        [p[mask].tolist() for p, mask in zip(predictions, kept, strict=True)],
        [r[mask].tolist() for r, mask in zip(references, kept, strict=True)],
    )
