"""What is said of a served task."""

from dataclasses import dataclass
from typing import Any

from intarsia.methods import method_to_dict
from intarsia.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One task, as lists and the page show it."""

    name: str
    version: str
    """The hash of its folder's content."""
    method: dict[str, Any]
    kind: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    """Text columns of a row."""
    bytes: int
    """Of the bank's memory."""
    trained_parameters: int
    metrics: dict[str, Any]
    resident: bool
    """On the device now; else it is paged out to host memory."""


def card_of(name: str, task: Task, nbytes: int, resident: bool) -> Card:
    """The card of a task with a head."""
    assert task.head is not None
    return Card(
        name=name,
        version=task.version,
        method=method_to_dict(task.method),
        kind=task.head.kind,
        labels=tuple(task.head.labels),
        columns=tuple(task.data.get("text_columns") or ("text",)),
        bytes=nbytes,
        trained_parameters=task.trained_parameters(),
        metrics=dict(task.metrics),
        resident=resident,
    )
