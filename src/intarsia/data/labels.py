"""Label columns: which kind of task they make, their names in a fixed order, and the numbers to train on.

Every label of a class becomes a string first, so that 1, "1" and 1.0 are one class in all formats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from intarsia.data.files import Table
from intarsia.errors import DataError, nearest

SEPARATOR = "|"
INTEGER = re.compile(r"[+-]?\d{1,18}")
INTEGRAL = re.compile(r"([+-]?\d{1,18})\.0+")  # an int column with holes is written as floats by pandas
LARGEST = 1e38
"""Of the numbers of a regression: training is in fp32."""
LISTED = ("multi-label", "token-classification")


def is_missing(value: Any) -> bool:
    """None, NaN or blank text: no label was written."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def guess_kind(table: Table, texts: Sequence[Any], label: str, notes: list[str]) -> str:
    """The kind of task from the values of the text and label columns; said in `notes`."""
    values = [value for value in table.columns[label] if value is not None]
    if any(isinstance(value, list) for value in values):
        words = bool(texts) and isinstance(texts[0], list)
        kind, why = ("token-classification", "a tag per word") if words else ("multi-label", "lists of labels")
    elif label not in table.class_names and _are_fractions(values):
        kind, why = "regression", f"column {label!r} holds numbers that are not integers"
    else:
        found = {class_text(value) for value in values if not is_missing(value)}
        if label not in table.class_names and len(found) > max(20, len(table) // 2):
            raise DataError(
                f"{table.source}: column {label!r} holds {len(found):,} different values in {len(table):,} rows, "
                "hardly classes; name another --label-column, or set kind to generation, regression or classification"
            )
        kind, why = "classification", f"{len(found)} different labels"
    notes.append(f"kind guessed: {kind} ({why})")
    return kind


def read_labels(table: Table, column: str, kind: str, words: Sequence[Sequence[str]]) -> list[Any]:
    """One label per row: a string; a list of strings (multi-label, token-classification); a float (regression).

    `words` are the rows' words, looked at for token-classification only. DataError names the first bad row.
    """
    values = table.columns[column]
    if names := table.class_names.get(column):
        values = [_named(value, names) for value in values]
    if kind == "multi-label":
        return _label_lists(table, column, values)
    if kind == "token-classification":
        return _tag_lists(table, column, values, words)
    if missing := [i for i, value in enumerate(values) if is_missing(value)]:
        is_nan = isinstance(value := values[missing[0]], float) and math.isnan(value)
        raise table.bad_rows(missing, f"{'nan' if is_nan else 'no label'} in column {column!r}")
    if listed := [i for i, value in enumerate(values) if isinstance(value, (list, dict, bytes))]:
        raise table.bad_rows(
            listed, f"column {column!r} holds a {type(values[listed[0]]).__name__}; {kind} needs one value per row"
        )
    if kind == "regression":
        return _numbers(table, column, values)
    if _are_fractions(values):
        row = next(i for i, value in enumerate(values) if not INTEGER.fullmatch(class_text(value)))
        raise DataError(
            f"{table.where(row)}: column {column!r} holds fractions such as {values[row]}, not classes; "
            "set kind to regression, or name another --label-column"
        )
    return [class_text(value) for value in values]


def label_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels; integers in numeric order, anything else by code point."""
    found = set(labels)
    if all(INTEGER.fullmatch(label) for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def to_numbers(table: Table, labels: list[Any], names: tuple[str, ...], kind: str) -> list[Any]:
    """What `read_labels` gave, as `Rows.labels`. A label outside `names` is a DataError with its row."""
    if kind in ("regression", "generation"):
        return labels
    index = {name: i for i, name in enumerate(names)}
    for row, label in enumerate(labels):
        for one in label if kind in LISTED else (label,):
            if one not in index:
                known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
                raise DataError(
                    f"{table.where(row)}: label {one!r} is not among the training labels {known}{nearest(one, names)}"
                )
    if kind == "classification":
        return [index[label] for label in labels]
    if kind == "token-classification":
        return [[index[tag] for tag in tags] for tags in labels]
    return [[int(name in row) for name in names] for row in map(set, labels)]


def class_text(value: Any) -> str:
    """The name of a class: 1, 1.0, "1", "1.0" and " 1 " are all "1"; True is "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    integral = INTEGRAL.fullmatch(text)
    return integral[1] if integral else text


def _named(value: Any, names: tuple[str, ...]) -> Any:
    """The hub's class ints, also in lists, as names; -1 stands for a label that is withheld."""
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _are_fractions(values: Sequence[Any]) -> bool:
    """Whether all values are numbers (or strings of numbers) and one of them is not an integer."""
    try:
        numbers = [float(value) for value in values if value != ""]
    except (TypeError, ValueError, OverflowError):  # the last of integers of hundreds of digits
        return False
    return any(not number.is_integer() for number in numbers)


def _numbers(table: Table, column: str, values: list[Any]) -> list[float]:
    numbers = []
    for row, value in enumerate(values):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise DataError(
                f"{table.where(row)}: {value!r} in column {column!r} is no number; regression needs numbers"
            ) from None
        numbers.append(number)
    if bad := [row for row, number in enumerate(numbers) if not abs(number) <= LARGEST]:
        raise table.bad_rows(
            bad, f"{numbers[bad[0]]} in column {column!r}; regression needs finite numbers, up to {LARGEST:g}"
        )
    return numbers


def _label_lists(table: Table, column: str, values: list[Any]) -> list[list[str]]:
    """Each row a list, or text separated by `|`; an empty one means that no label holds."""
    lists = [value.split(SEPARATOR) if isinstance(value, str) else value for value in values]
    for row, value in enumerate(lists):
        if not isinstance(value, list) or any(isinstance(one, (list, dict, tuple, bytes)) for one in value):
            raise DataError(
                f"{table.where(row)}: {value!r} in column {column!r}; multi-label needs a list of labels, "
                f"or text separated by {SEPARATOR!r}"
            )
        if None in value:
            raise DataError(f"{table.where(row)}: an empty label within the list in column {column!r}")
    return [[class_text(one) for one in value if not is_missing(one)] for value in lists]


def _tag_lists(table: Table, column: str, values: list[Any], words: Sequence[Sequence[str]]) -> list[list[str]]:
    for row, (tags, row_words) in enumerate(zip(values, words, strict=True)):
        if not isinstance(tags, list):
            raise DataError(f"{table.where(row)}: column {column!r} must be a list of tags, one per word")
        if len(tags) != len(row_words):
            raise DataError(f"{table.where(row)}: {len(row_words)} words but {len(tags)} tags in column {column!r}")
        if any(is_missing(tag) or isinstance(tag, (list, dict)) for tag in tags):
            raise DataError(f"{table.where(row)}: an empty or nested tag in column {column!r}")
    return [[class_text(tag) for tag in tags] for tags in values]
