"""Prompt ensembling (Lester et al. 2021, section 6): k tasks answer every row in one forward pass, and vote.

Each row stands k times in the batch, once for each task, so the frozen model runs once over B k rows instead of k times.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from intarsia.backbone import Backbone
from intarsia.errors import ConfigError, TaskError
from intarsia.heads import Head
from intarsia.rows import longest_input
from intarsia.task import Task
from intarsia.training import Scores, Writing, compute_metrics
from intarsia.training.generating import write
from intarsia.workflow.reading import Source, head_of


def majority(scores: np.ndarray) -> tuple[int, np.ndarray]:
    """(k, C) probabilities of k tasks -> the class with most votes, and (C,) shares of the votes.

    A tie goes to the higher sum of probabilities, then to the first class.
    """
    votes, sums = np.bincount(scores.argmax(-1), minlength=scores.shape[-1]), scores.sum(0)
    winner = max(range(len(votes)), key=lambda c: (votes[c], sums[c], -c))
    return winner, votes / len(scores)


def mean(scores: np.ndarray) -> tuple[int, np.ndarray]:
    """(k, C) probabilities of k tasks -> the class of the highest mean, and the (C,) means."""
    means = scores.mean(0)
    return int(means.argmax()), means


VOTES: dict[str, Callable[[np.ndarray], tuple[int, np.ndarray]]] = {"majority": majority, "mean": mean}


def majority_text(texts: Sequence[str]) -> str:
    """The commonest text; of equally common ones the first."""
    return Counter(texts).most_common(1)[0][0]


def check(tasks: Sequence[Task], combine: str) -> None:
    """ConfigError or TaskError unless these tasks can vote; gives them names of their own."""
    if combine not in VOTES:
        raise ConfigError(f"combine must be one of {', '.join(VOTES)}, got {combine!r}")
    first, head = tasks[0], head_of(tasks[0])
    if head.kind not in ("classification", "generation") or (head.kind == "generation" and not head.labels):
        what = "generation of free text" if head.kind == "generation" else head.kind
        raise ConfigError(f"only tasks with one label a row can vote, classification or text-to-text; got {what}")
    if head.kind == "generation" and combine == "mean":
        raise ConfigError("generated labels have no probabilities to take a mean of; give --combine majority")
    for index, task in enumerate(tasks[1:], 2):
        other = head_of(task)
        if (other.kind, other.labels) != (head.kind, head.labels):
            raise TaskError(
                f"task {index} answers {_answers(other)}, the first {_answers(head)}; only tasks with the same labels can vote"
            )
        if task.data.get("template") != first.data.get("template"):
            raise TaskError(f"task {index} has another template than the first; only tasks that read alike can vote")
        if _columns(task) != _columns(first):
            raise TaskError(
                f"task {index} reads {_columns(task)} text(s) per row, the first {_columns(first)}; only tasks that read alike can "
                "vote"
            )
        if any(task.name == before.name for before in tasks[: index - 1]):
            task.name = f"{task.name} ({index})"


def _answers(head: Head) -> str:
    return f"{head.kind} with labels {', '.join(head.labels)}" if head.labels else f"{head.kind} without labels"


def _columns(task: Task) -> int:
    return len(task.data.get("text_columns") or ("text",))


def reader(tasks: Sequence[Task], backbone: Backbone) -> Task:
    """The one whose rows all can take: the longest prompt leaves the fewest places for text."""
    return min(tasks, key=lambda task: longest_input(task, backbone))


def answer(
    bank: Any,
    tasks: Sequence[Task],
    source: Source,
    combine: str,
    *,
    tick: Callable[[], None],
    writing: Writing | None,
) -> tuple[Scores, list[list[Any]]]:
    """The vote on each row, and what each task said: k lists of class indices or texts, in the order of the plan."""
    result = Scores(scores=[], predictions=[])
    said: list[list[Any]] = [[] for _ in tasks]
    with torch.no_grad():
        for key in source.plan(0):
            rows: list[Any] = (
                _texts(bank, tasks, source, key, writing) if writing else _probabilities(bank, tasks, source, key)
            )
            for row in rows:
                for own, one in zip(said, row, strict=True):
                    own.append(one if writing else int(np.argmax(one)))
                if writing:
                    result.predictions.append(majority_text(row))
                    continue
                winner, shares = VOTES[combine](row)
                result.predictions.append(winner)
                result.scores.append(shares)
            tick()
    return result, said


def _probabilities(bank: Any, tasks: Sequence[Task], source: Any, key: Any) -> list[np.ndarray]:
    """(k, C) of each row."""
    k = len(tasks)
    batch, _ = source.load(key)
    batch = {name: x.repeat_interleave(k, 0) for name, x in batch.items()}
    logits = bank(batch, tasks=_names(tasks, len(key)))
    return list(torch.stack(logits).softmax(-1).cpu().numpy().reshape(len(key), k, -1))


def _texts(bank: Any, tasks: Sequence[Task], source: Any, key: Any, writing: Writing) -> list[list[str]]:
    k = len(tasks)
    texts = write(bank, source, key, _names(tasks, len(key)), writing, copies=k)
    return [texts[at : at + k] for at in range(0, len(texts), k)]


def _names(tasks: Sequence[Task], rows: int) -> list[str]:
    return [task.name for _ in range(rows) for task in tasks]


def metrics(
    tasks: Sequence[Task], source: Any, answers: Scores, said: Sequence[Sequence[Any]], writing: Writing | None
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Of the vote, and of each task by its name."""
    head = head_of(tasks[0])
    references: list[Any] = []
    for key in source.plan(0):
        references += source.references(key) if writing else source.load(key)[1].tolist()

    def of(predictions: Sequence[Any]) -> dict[str, float]:
        return compute_metrics(head.kind, predictions, references, head.labels)

    return of(answers.predictions), {task.name: of(own) for task, own in zip(tasks, said, strict=True)}
