"""Using saved tasks: scores on labelled rows, and predictions on any rows."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.data import DataSpec, Rows, load_data, load_rows_for_prediction
from intarsia.data.spec import SPLITS
from intarsia.errors import ConfigError, DataError, TaskError, nearest
from intarsia.heads import Decoding
from intarsia.modes import own_modes
from intarsia.rows import Prediction, longest_input, room
from intarsia.task import Task
from intarsia.taskfile import read_description
from intarsia.training import Scores, Writing
from intarsia.training import evaluate as run_evaluation
from intarsia.training import predict as run_prediction
from intarsia.training.progress import ticking
from intarsia.workflow import ensemble
from intarsia.workflow.answers import named
from intarsia.workflow.reading import (
    Source,
    columns_of,
    head_of,
    origin,
    source_of,
    spec_of,
    typed_rows,
)

log = logging.getLogger("intarsia")
Folders = Path | str | Sequence[Path | str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Metrics of a task, or of the vote of several, on one split."""

    task: str
    split: str
    """Or the file."""
    rows: int
    metrics: dict[str, float]
    members: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of a vote: the metrics of each task alone."""


def open_task(
    folder: Path, *, backbone: str | Backbone | None = None, dtype: str = "auto", device: str = "auto"
) -> tuple[Task, Backbone]:
    """A task and the backbone it was trained on. backbone: where it is now; None: the name in task.json."""
    if not isinstance(backbone, Backbone):
        saved = read_description(folder)  # before the backbone: a wrong folder is said at once
        backbone = Backbone.load(
            backbone or str(saved["backbone"].get("name")),
            dtype=dtype,
            device=device,
            language_model=bool(saved["head"].get("verbaliser")),
        )
    task = Task.load(folder, backbone)
    if task.head is None:
        raise TaskError(f"{folder}: task {task.name!r} has no head, so it answers nothing; use it with TaskBank")
    return task, backbone


@own_modes()
def evaluate(
    folder: Folders,
    data: str | DataSpec | None = None,
    split: str | None = None,
    *,
    combine: str | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    batch_size: int = 32,
    generation: Mapping[str, Any] | None = None,
    **where: Any,
) -> Evaluation:
    """Metrics of a saved task on one split of `data`: embedded:NAME, hub:NAME, a file, or None for what it was trained on.

    split: None: test. Several folders: their tasks vote on each row, by `combine`, "majority" or "mean" (of the probabilities).
    generation: settings to change for this call, such as {"beams": 5, "lowercase": True}. where: backbone, dtype, device, as
    `open_task` takes them. DataError where a label is none of the task's.
    """
    split = chosen_split(split, data, "test")
    tasks, backbone = _open(folder, combine, where)
    task, writing = tasks[0], _writing(tasks[0], backbone, generation)
    if isinstance(data, DataSpec):
        spec = data
    else:
        spec = spec_of(task, data, columns_of(task, text_columns), label_column or task.data.get("label_column"))
    splits = load_data(spec)
    file = None if isinstance(data, DataSpec) else spec.test
    rows = splits.split(split if file is None else "test")
    if rows.labels is None:
        raise DataError(f"the {split} split has no labels to compare with; choose another --split, or use predict")
    source = _read(rows, ensemble.reader(tasks, backbone), backbone, batch_size)
    with resident(backbone, tasks) as bank:
        if combine is None:
            metrics, members = score(bank, task, source, writing).metrics, {}
        else:
            metrics, members = ensemble.metrics(tasks, source, *_vote(bank, tasks, source, combine, writing), writing)
    name = " + ".join(task.name for task in tasks)
    return Evaluation(
        task=name, split=split if file is None else str(file), rows=len(rows), metrics=metrics, members=members
    )


@own_modes()
def predict(
    folder: Folders,
    texts: Sequence[str | tuple[str, ...]] | None = None,
    data: str | DataSpec | None = None,
    split: str | None = None,
    *,
    combine: str | None = None,
    text_columns: Sequence[str] | None = None,
    batch_size: int = 32,
    generation: Mapping[str, Any] | None = None,
    **where: Any,
) -> list[Prediction]:
    """Answers of a saved task, or of the vote of several, in the order of the rows.

    texts: one str per row; for a task on pairs (or a template of more fields) a tuple; for token-classification a tuple of
    words, or a str that is split at blanks. Or data: embedded:NAME, hub:NAME (and `split`), or a file. Everything else as
    for `evaluate`.
    """
    if isinstance(texts, str):
        raise ConfigError(f"predict takes a list of texts, got one str; give [{texts[:40]!r}]")
    if (texts is None) == (data is None):
        raise ConfigError("predict needs texts or data: give --text (once for each text) or --data, not both")
    split = chosen_split(split, data, "test")
    tasks, backbone = _open(folder, combine, where)
    task, writing = tasks[0], _writing(tasks[0], backbone, generation)
    if texts is not None:
        rows = typed_rows(texts, task)
    else:
        rows = load_rows_for_prediction(origin(data), columns_of(task, text_columns), split, head_of(task).kind)
    source = _read(rows, ensemble.reader(tasks, backbone), backbone, batch_size)
    with resident(backbone, tasks) as bank:
        if combine is not None:
            answers, _ = _vote(bank, tasks, source, combine, writing)
        else:
            with ticking("predicting", len(source.plan(0))) as tick:
                answers = run_prediction(bank, task, source, tick=tick, writing=writing)
    return named(rows, head_of(task), source, answers)


@contextmanager
def resident(backbone: Backbone, tasks: Sequence[Task]) -> Iterator[TaskBank]:
    """A bank that leaves no hook behind: the backbone may be the caller's own, and used again."""
    bank = TaskBank(backbone, tasks)
    try:
        yield bank
    finally:
        bank.detach()


def score(bank: TaskBank, task: Task, source: Source, writing: Writing | None = None) -> Scores:
    """Metrics of `task` on the rows of a source. writing: for generation, as the task says where it is not given."""
    generated = head_of(task).kind == "generation"
    writing = writing or (Writing.of(task, bank.backbone) if generated else None)
    with ticking("scoring", len(source.plan(0)) * (1 + generated)) as tick:
        return run_evaluation(bank, task, source, tick=tick, writing=writing)


def check_writing(task: Task, backbone: Backbone, new: int) -> None:
    """ConfigError where the longest input and `new` tokens behind it have more positions than the backbone."""
    limit = room(task, backbone)
    given = task.data.get("max_length", limit) - task.data.get("target_length", new)
    longest = given + new if backbone.kind == "decoder" else new + 1
    if longest > limit:
        most = new - (longest - limit)
        raise ConfigError(
            f"generation.max_new_tokens is {new}, and behind the longest input {backbone.name} has places for {max(0, most)}; "
            "lower it, or train with a larger train.target_length"
        )


def _open(folder: Folders, combine: str | None, where: Mapping[str, Any]) -> tuple[list[Task], Backbone]:
    """The tasks of one or more folders, on one backbone."""
    folders = [Path(folder)] if isinstance(folder, Path | str) else [Path(one) for one in folder]
    if not folders:
        raise ConfigError("no task folder is given; give one, or several to vote")
    if (len(folders) > 1) != (combine is not None):
        how = "several task folders vote: say how with --combine majority or --combine mean"
        alone = "--combine is how several task folders vote, and one folder is given; leave it out"
        raise ConfigError(how if len(folders) > 1 else alone)
    task, backbone = open_task(folders[0], **where)
    tasks = [task, *(open_task(one, backbone=backbone)[0] for one in folders[1:])]
    if combine is not None:
        ensemble.check(tasks, combine)
    return tasks, backbone


def _read(rows: Rows, task: Task, backbone: Backbone, batch_size: int) -> Source:
    """The batches of some rows; the log says if some had to be cut."""
    source = source_of(rows, task, backbone, batch_size)
    if cut := source.encoded.truncated:
        log.warning("%s of %s texts cut to fit %s tokens", f"{cut:,}", f"{len(rows):,}", longest_input(task, backbone))
    return source


def _writing(task: Task, backbone: Backbone, changes: Mapping[str, Any] | None) -> Writing | None:
    if head_of(task).kind != "generation":
        if changes:
            raise ConfigError(f"{next(iter(changes))} is for tasks that generate text; task {task.name!r} does not")
        return None
    writing = Writing.of(task, backbone, changes)
    _check_used(changes or {}, writing.decoding)
    check_writing(task, backbone, writing.decoding.max_new_tokens)
    return writing


def _check_used(changes: Mapping[str, Any], decoding: Decoding) -> None:
    """ConfigError for a change that changes nothing: of drawing where nothing is drawn, of beam search with one beam."""
    usual = Decoding()
    for name, value in changes.items():
        if value == getattr(usual, name, value):  # it asks for nothing
            continue
        if name in ("temperature", "top_k", "top_p") and not decoding.sample:
            raise ConfigError(f"{name} is for drawing tokens, and none is drawn; add --sample, or leave it out")
        if name == "length_penalty" and decoding.beams == 1:
            raise ConfigError("length_penalty is for beam search, and there is one beam; add --beams, or leave it out")


def _vote(
    bank: TaskBank, tasks: Sequence[Task], source: Source, combine: str, writing: Writing | None
) -> tuple[Scores, list[list[Any]]]:
    with ticking("voting", len(source.plan(0))) as tick:
        return ensemble.answer(bank, tasks, source, combine, tick=tick, writing=writing)


def chosen_split(split: str | None, data: str | DataSpec | None, usual: str) -> str:
    """The split that is asked for, else the usual one. ConfigError for an unknown one, and for one of a file."""
    if split is None:
        return usual
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split!r}{nearest(split, SPLITS)}")
    if data is not None and isinstance(file := origin(data), Path):
        raise ConfigError(f"{file} is a file, which has no splits: all its rows are read; leave --split {split} out")
    return split
