"""Using a saved task: scores on labelled rows, and predictions on any rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.data import DataSpec, Encoded, EncodedSource, Rows, encode, load_data, load_rows_for_prediction
from intarsia.data.spec import SPLITS
from intarsia.errors import ConfigError, DataError, TaskError, nearest
from intarsia.heads import Head
from intarsia.task import Task
from intarsia.taskfile import read_description
from intarsia.training import Scores
from intarsia.training import evaluate as run_evaluation
from intarsia.training import predict as run_prediction


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Metrics of a task on one split."""

    task: str
    split: str
    rows: int
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The answer for one row."""

    text: list[str]
    """The text, both texts of a pair, or the words of a token-classification row."""
    prediction: Any
    """Class index; regression: the number; multi-label: the indices above 0.5; token-classification: an index per word,
    None for a word without a token."""
    label: Any
    """The name or names of `prediction`; None for regression."""
    scores: Any
    """Probability of every label by name; token-classification: of the label chosen for each word; None for regression."""


def open_task(
    folder: Path, *, backbone: str | Backbone | None = None, dtype: str = "auto", device: str = "auto"
) -> tuple[Task, Backbone]:
    """A task and the backbone it was trained on. backbone: where it is now; None: the name in task.json."""
    if not isinstance(backbone, Backbone):
        named = read_description(folder)["backbone"].get("name")  # before the backbone: a wrong folder is said at once
        backbone = Backbone.load(backbone or str(named), dtype=dtype, device=device)
    task = Task.load(folder, backbone)
    if task.head is None:
        raise TaskError(f"{folder}: task {task.name!r} has no head, so it answers nothing; use it with TaskBank")
    return task, backbone


def takes_pairs(folder: Path) -> bool:
    """Whether a task folder's rows are pairs of texts."""
    return len(read_description(folder)["data"].get("text_columns", ())) == 2


def evaluate(
    folder: Path | str,
    data: str | DataSpec | None = None,
    split: str = "test",
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    batch_size: int = 32,
    **where: Any,
) -> Evaluation:
    """Metrics of a saved task on one split of `data`: embedded:NAME, hub:NAME, a file, or None for what it was trained on.

    where: backbone, dtype, device, as `open_task` takes them. DataError where a label is none of the task's.
    """
    _check_split(split)
    task, backbone = open_task(Path(folder), **where)
    if isinstance(data, DataSpec):
        spec = data
    else:
        spec = _spec(task, data, _columns(task, text_columns), label_column or task.data.get("label_column"))
    splits = load_data(spec)
    rows = splits.split("test" if spec.data is None and not isinstance(data, DataSpec) else split)
    if rows.labels is None:
        raise DataError(f"the {split} split has no labels to compare with; choose another --split, or use predict")
    scores = score(TaskBank(backbone, [task]), task, _source(rows, task, backbone, batch_size))
    return Evaluation(task=task.name, split=split, rows=len(rows), metrics=scores.metrics)


def predict(
    folder: Path | str,
    texts: Sequence[str | tuple[str, ...]] | None = None,
    data: str | DataSpec | None = None,
    split: str = "test",
    *,
    text_columns: Sequence[str] | None = None,
    batch_size: int = 32,
    **where: Any,
) -> list[Prediction]:
    """Answers of a saved task, in the order of the rows.

    texts: one str per row; for a task on pairs a tuple of two; for token-classification a tuple of words, or a str that is
    split at blanks. Or data: embedded:NAME, hub:NAME (and `split`), or a file. where: as for `evaluate`.
    """
    if (texts is None) == (data is None):
        raise ConfigError("predict needs texts or data: give --text (once for each text) or --data, not both")
    _check_split(split)
    task, backbone = open_task(Path(folder), **where)
    if texts is not None:
        rows = _rows(texts, task)
    else:
        rows = load_rows_for_prediction(_source_of(data), _columns(task, text_columns), split, _head(task).kind)
    source = _source(rows, task, backbone, batch_size)
    answers = run_prediction(TaskBank(backbone, [task]), task, source)
    return _named(rows, task, source, answers)


def score(bank: TaskBank, task: Task, source: EncodedSource) -> Scores:
    """Metrics of `task` on the rows of a source."""
    return run_evaluation(bank, task, source)


def batches_of(
    encoded: Encoded, backbone: Backbone, batch_size: int, seed: int | None = None, bucket: bool = True
) -> EncodedSource:
    """The batches of encoded rows, padded as the backbone's tokenizer pads; in order of length without a seed."""
    tokenizer = backbone.tokenizer
    return EncodedSource(
        encoded,
        batch_size,
        pad_id=cast(int, tokenizer.pad_token_id),
        padding_side=cast(Any, tokenizer.padding_side),
        seed=seed,
        bucket=bucket,
    )


def _head(task: Task) -> Head:
    assert task.head is not None, "open_task refuses a task without a head"
    return task.head


def _columns(task: Task, given: Sequence[str] | None) -> tuple[str, ...] | None:
    """The text columns as given, or of the task's training; None, to be guessed, for a task made by hand."""
    return tuple(given or task.data.get("text_columns") or ()) or None


def _spec(task: Task, data: str | None, columns: tuple[str, ...] | None, label: str | None) -> DataSpec:
    """`data` with the columns, labels and split of the task's own training."""
    source = task.data.get("source") if data is None else _source_of(data)
    if source is None:
        raise ConfigError("this task was trained on files; say which to use now with --data FILE")
    # A file of any split goes in as the test file: as a training file, a share would be set aside.
    name = source.data if isinstance(source, DataSpec) else source if isinstance(source, str) else None
    return DataSpec(
        data=name,
        test=source if isinstance(source, Path) else None,
        text_columns=columns,
        label_column=label,
        kind=_head(task).kind,
        labels=_head(task).labels or None,
        split_seed=task.data.get("split_seed", 0),
        validation_fraction=task.data.get("validation_fraction", 0.1),
    )


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split!r}{nearest(split, SPLITS)}")


def _source_of(data: str | DataSpec | None) -> Path | DataSpec:
    """A file, unless it is written like embedded:NAME and no such file exists."""
    if isinstance(data, DataSpec):
        return data
    assert data is not None
    return DataSpec(data=data) if ":" in data and not Path(data).exists() else Path(data)


def _rows(texts: Sequence[str | tuple[str, ...]], task: Task) -> Rows:
    """Typed texts as rows of the task's shape. DataError for an empty one."""
    kind, columns = _head(task).kind, len(task.data.get("text_columns") or ("text",))
    rows: list[tuple[str, ...]] = []
    for number, text in enumerate(texts, 1):
        parts = tuple(text.split()) if isinstance(text, str) and kind == "token-classification" else text
        row = (parts,) if isinstance(parts, str) else tuple(parts)
        if not row or not all(part.strip() for part in row):
            raise DataError(f"text {number} is empty; expected at least one word")
        if kind != "token-classification" and len(row) != columns:
            raise DataError(f"text {number}: task {task.name!r} takes {columns} text(s) per row, got {len(row)}")
        rows.append(row)
    if not rows:
        raise DataError("no text to predict; give at least one")
    return Rows(rows)


def _source(rows: Rows, task: Task, backbone: Backbone, batch_size: int) -> EncodedSource:
    max_length = min(task.data.get("max_length", backbone.max_length), backbone.max_length)
    return batches_of(encode(rows, backbone.tokenizer, max_length, _head(task).kind), backbone, batch_size)


def _named(rows: Rows, task: Task, source: EncodedSource, answers: Scores) -> list[Prediction]:
    """Answers in the order of the rows (the source's plan is in order of length), with the labels' names."""
    head = _head(task)
    found: list[Prediction | None] = [None] * len(rows)
    at = 0
    for batch in source.plan(0):
        for place, row in enumerate(batch):
            answer = answers.scores[at], answers.predictions[at]
            spots = _word_spots(source, batch, place, len(rows.texts[row]))
            found[row] = _one(list(rows.texts[row]), head.kind, head.labels, *answer, spots)
            at += 1
    return [answer for answer in found if answer is not None]


def _word_spots(source: EncodedSource, batch: np.ndarray, place: int, words: int) -> list[int | None]:
    """Token-classification: at which position of its padded batch row each word begins; None for a word without a token."""
    encoded = source.encoded
    if encoded.words is None:
        return []
    row = batch[place]
    own = encoded.words[encoded.offsets[row] : encoded.offsets[row + 1]]
    shift = int(encoded.lengths[batch].max()) - len(own) if source.padding_side == "left" else 0
    spots: list[int | None] = [None] * words
    for position, word in enumerate(own):
        if word >= 0:
            spots[word] = position + shift
    return spots


def _one(
    text: list[str], kind: str, labels: Sequence[str], scores: np.ndarray, answer: Any, spots: list[int | None]
) -> Prediction:
    if kind == "regression":
        return Prediction(text=text, prediction=float(answer), label=None, scores=None)
    if kind == "token-classification":
        chosen = [None if spot is None else int(answer[spot]) for spot in spots]
        sure = [None if spot is None else float(scores[spot].max()) for spot in spots]
        names = [None if index is None else labels[index] for index in chosen]
        return Prediction(text=text, prediction=chosen, label=names, scores=sure)
    by_name = {name: float(value) for name, value in zip(labels, scores, strict=True)}
    if kind == "multi-label":
        chosen = [int(index) for index in np.flatnonzero(answer)]
        return Prediction(text=text, prediction=chosen, label=[labels[i] for i in chosen], scores=by_name)
    return Prediction(text=text, prediction=int(answer), label=labels[int(answer)], scores=by_name)
