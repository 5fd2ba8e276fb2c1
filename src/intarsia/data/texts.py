"""Text columns to rows: strings, one or several per row, or lists of words; each checked to hold something."""

from __future__ import annotations

from typing import Any

from intarsia.data.columns import require_column
from intarsia.data.files import Table, encodes
from intarsia.errors import DataError


def read_texts(table: Table, columns: tuple[str, ...], kind: str | None) -> list[tuple[str, ...]]:
    """A text per column and row; the row's words for token-classification. kind None: whichever is there."""
    several = len(columns) > 1
    values = [require_column(table, name, "--text-columns") for name in columns]
    words = isinstance(values[0][0], list)
    if words and (kind not in (None, "token-classification") or several):
        raise DataError(f"{table.where(0)}: column {columns[0]!r} holds a list; {kind or 'a pair'} needs text")
    if not words and kind == "token-classification":
        raise DataError(
            f"{table.where(0)}: column {columns[0]!r} holds {_name(values[0][0])}; token-classification needs "
            "a list of words per row, in JSONL or Parquet"
        )
    for name, column in zip(columns, values, strict=True):
        (_check_words if words else _check_strings)(table, name, column)
    return [tuple(row) for row in values[0]] if words else list(zip(*values, strict=True))


def read_targets(table: Table, column: str) -> list[list[str]]:
    """The texts to generate for each row: one, or the list of them that the column holds."""
    values = [value if isinstance(value, list) else [value] for value in table.columns[column]]
    for i, targets in enumerate(values):
        if wrong := [one for one in targets if one is not None and not isinstance(one, str)]:
            raise DataError(
                f"{table.where(i)}: column {column!r} holds {_name(wrong[0])}; generation needs text or a list of texts; "
                "for labels to be generated as words set text_to_text"
            )
    if empty := [i for i, row in enumerate(values) if not row or any(not one or one.isspace() for one in row)]:
        raise table.bad_rows(empty, f"no text to generate in column {column!r}; fill it or drop the row")
    if broken := [i for i, row in enumerate(values) if not all(map(encodes, row))]:
        raise table.bad_rows(broken, f"column {column!r} holds half a surrogate pair, which is no text")
    return values


def _check_strings(table: Table, name: str, column: list[Any]) -> None:
    for i, value in enumerate(column):
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{table.where(i)}: column {name!r} holds {_name(value)}, expected text; is it the text column?"
            )
    if empty := [i for i, value in enumerate(column) if not value or value.isspace()]:
        raise table.bad_rows(empty, f"empty text in column {name!r}; fill it or drop the row")
    if broken := [i for i, value in enumerate(column) if not encodes(value)]:
        raise table.bad_rows(broken, f"column {name!r} holds half a surrogate pair, which is no text")


def _check_words(table: Table, name: str, column: list[Any]) -> None:
    for i, row in enumerate(column):
        if not isinstance(row, list) or not all(isinstance(word, str) for word in row):
            raise DataError(f"{table.where(i)}: column {name!r} must be a list of words in every row")
    if empty := [i for i, row in enumerate(column) if not row or any(not word or word.isspace() for word in row)]:
        raise table.bad_rows(empty, f"no words, or an empty word, in column {name!r}; fill it or drop the row")
    if broken := [i for i, row in enumerate(column) if not all(map(encodes, row))]:
        raise table.bad_rows(broken, f"column {name!r} holds half a surrogate pair, which is no text")


def _name(value: Any) -> str:
    known = {"str": "text", "NoneType": "nothing", "int": "an int"}
    return known.get(type(value).__name__, f"a {type(value).__name__}")
