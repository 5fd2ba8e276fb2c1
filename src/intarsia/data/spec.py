"""What a user asks of the data layer (`DataSpec`) and what it gives back (`Rows`, `Splits`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intarsia.errors import ConfigError, DataError, nearest

KINDS = ("classification", "multi-label", "regression", "token-classification")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """Where the rows come from and which columns matter. Give `data`, or one or more files, not both."""

    data: str | None = None
    """`embedded:NAME`, or `hub:NAME`, `hub:NAME/CONFIG`, `hub:OWNER/NAME`, `hub:OWNER/NAME/CONFIG`."""
    train: Path | str | None = None
    """Training file: .csv, .tsv, .jsonl (each also with .gz) or .parquet."""
    validation: Path | str | None = None
    """Validation file. Without one, a share of the training rows is set aside."""
    test: Path | str | None = None
    """Test file."""
    text_columns: tuple[str, ...] | None = None
    """One column, or two for a sentence pair. None: guessed when obvious, and said in `Splits.notes`."""
    label_column: str | None = None
    """None: guessed when obvious, and said."""
    kind: str | None = None
    """classification, multi-label, regression or token-classification. None: guessed from the labels, and said."""
    labels: tuple[str, ...] | None = None
    """Label names of an existing task, in its order; another label is an error. None: those of the training rows."""
    split_seed: int = 0
    """Seed of the validation share taken from the training rows."""
    validation_fraction: float = 0.1
    """Share of the training rows set aside when there is no validation split; between 0 and 1."""

    def __post_init__(self) -> None:
        files = [name for name in SPLITS if getattr(self, name) is not None]
        if self.data is None and not files:
            raise ConfigError(
                "no data given: expected data (embedded:NAME or hub:NAME) or a train, validation or test file"
            )
        if self.data is not None and files:
            raise ConfigError(f"data is {self.data!r} and a {files[0]} file is given too; give one or the other")
        if self.text_columns is not None:
            if isinstance(self.text_columns, str) or len(self.text_columns) not in (1, 2):
                raise ConfigError(f"text_columns must name one column, or two for a pair, got {self.text_columns!r}")
            if len(set(self.text_columns)) < len(self.text_columns) or self.label_column in self.text_columns:
                raise ConfigError(
                    f"text_columns {self.text_columns!r} and label_column {self.label_column!r} must differ"
                )
        if self.kind is not None and self.kind not in KINDS:
            raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}{nearest(self.kind, KINDS)}")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction must lie between 0 and 1, got {self.validation_fraction}")
        if self.split_seed < 0:
            raise ConfigError(f"split_seed must not be negative, got {self.split_seed}")


@dataclass(slots=True)
class Rows:
    """The rows of one split, checked: no text is empty, every label is known."""

    texts: list[tuple[str, ...]]
    """(text,) or (first, second) of each row; for token-classification the row's words."""
    labels: Sequence[Any] | None = None
    """Of each row: the class as an int; a float for regression; a list of 0/1, one per class, for multi-label;
    a list of class ints, one per word, for token-classification. None: no labels."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> Rows:
        """The rows at `indices`, in that order."""
        labels = None if self.labels is None else [self.labels[i] for i in indices]
        return Rows([self.texts[i] for i in indices], labels)


@dataclass(slots=True)
class Splits:
    """Everything that was read, and what was guessed on the way."""

    kind: str
    labels: tuple[str, ...]
    """Label names, in the order of the class ints; () for regression."""
    train: Rows | None
    validation: Rows | None
    test: Rows | None
    text_columns: tuple[str, ...]
    label_column: str
    notes: list[str] = field(default_factory=list)
    """Each guess and each row left out, one sentence each, for the user to see."""
    fingerprint: str = ""
    """sha256 over kind, label names and the rows of every split."""

    def split(self, name: str) -> Rows:
        """The split `name`; DataError says which splits there are."""
        there = {split: len(rows) for split in SPLITS if (rows := getattr(self, split)) is not None}
        if name not in there:
            have = ", ".join(f"{split} ({count:,} rows)" for split, count in there.items())
            raise DataError(f"there is no {name!r} split; there is {have}{nearest(name, SPLITS)}")
        return getattr(self, name)
