"""Which columns hold the text and the label: as told, or guessed where the names leave no doubt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from intarsia.data.files import Table
from intarsia.errors import DataError, nearest

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("question", "passage"),
)
TEXTS = ("text", "sentence", "question", "tokens", "words", "review", "tweet", "message", "comment", "content", "query")
LABELS = ("label", "labels", "target", "targets", "class", "category", "ner_tags", "tags", "sentiment", "polarity")
LABELS += ("rating", "score", "stars", "intent", "emotion", "spam", "is_duplicate", "gold_label")
TARGETS = ("target", "targets", "reference", "references", "ref", "refs", "summary", "output", "answer", "label")

# id, ID, id1, sentence_id, pairID, #1 ID, idx, and index columns without a name
ID = re.compile(r"(?:^|[_\W])(?:id|idx|index|guid|uid|uuid)\d*$|^(?:column \d+|unnamed\b.*)$", re.IGNORECASE)
CAMEL_ID = re.compile(r"[a-z]ID$")


def choose_text_columns(
    table: Table, given: tuple[str, ...] | None, label: str | None, notes: list[str]
) -> tuple[str, ...]:
    """One or two text columns. DataError lists the columns when a given one is missing or the guess is not obvious."""
    if given is not None:
        for name in given:
            require_column(table, name, "--text-columns")
        return given
    free = {name.lower(): name for name in table.columns if name != label and not is_id(name)}
    pairs = [tuple(free[name] for name in pair) for pair in PAIRS if all(name in free for name in pair)]
    named = [free[name] for name in TEXTS if name in free]
    if len(pairs) == 1:
        chosen = pairs[0]
    elif not pairs and ("text" in free or len(named) == 1):
        chosen = (free.get("text") or named[0],)
    else:
        like_text = [name for name in free.values() if name.lower() not in LABELS and _is_text(table.columns[name])]
        if named or len(like_text) != 1:
            raise DataError(f"{table.source}: {_which(table, 'text')}; say which with --text-columns a or a,b")
        chosen = (like_text[0],)
    notes.append(f"text column{'s' * (len(chosen) > 1)} guessed: {' and '.join(chosen)}")
    return chosen


def choose_label_column(
    table: Table, given: str | None, texts: tuple[str, ...], notes: list[str], kind: str | None = None
) -> str:
    """The label column; for generation that of the texts to generate. DataError lists the columns when it is not there,

    or not obvious.
    """
    if given is not None:
        require_column(table, given, "--label-column")
        return given
    free = {name.lower(): name for name in table.columns if name not in texts and not is_id(name)}
    generated = kind == "generation"
    named = [free[name] for name in (TARGETS if generated else LABELS) if name in free]
    if "label" in free or len(named) == 1:
        chosen = free.get("label") or named[0]
    elif not named and len(free) == 1 and (_could_be_labels(table, only := next(iter(free.values()))) or generated):
        chosen = only
    else:
        raise DataError(f"{table.source}: {_which(table, 'label')}; say which with --label-column c")
    notes.append(f"label column guessed: {chosen}")
    return chosen


def require_column(table: Table, name: str, flag: str) -> list[Any]:
    """The values of column `name`, or a DataError that lists the columns and the nearest name."""
    if name not in table.columns:
        have = ", ".join(table.columns)
        near = nearest(name, list(table.columns))
        raise DataError(f"{table.source}: no column {name!r} ({flag}); its columns are {have}{near}")
    return table.columns[name]


def is_id(name: str) -> bool:
    """Whether a column's name says that it numbers the rows: such a column is never guessed."""
    return bool(ID.search(name) or CAMEL_ID.search(name))


def _which(table: Table, role: str) -> str:
    return f"which column is the {role}? The columns are {', '.join(table.columns)}"


def _sample(values: Sequence[Any]) -> list[Any]:
    return [value for value in values[:1000] if value is not None and value != ""]


def _is_text(values: Sequence[Any]) -> bool:
    """Strings (or lists of words), and not all of them numbers."""
    sample = _sample(values)
    if sample and all(isinstance(value, list) for value in sample):
        return all(isinstance(word, str) for value in sample for word in value)
    return bool(sample) and all(isinstance(value, str) for value in sample) and not all(map(_is_number, sample))


def _could_be_labels(table: Table, name: str) -> bool:
    """Numbers or lists, or strings that come back; and not a file without a header, whose first label is the name."""
    if _is_number(name):
        return False
    sample = _sample(table.columns[name])
    if any(not isinstance(value, str) for value in sample) or all(map(_is_number, sample)):
        return True
    return len(set(sample)) <= max(2, len(sample) // 2)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
