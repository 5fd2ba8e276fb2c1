"""What a user asks of the data layer (`DataSpec`) and what it gives back (`Rows`, `Splits`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intarsia.data.template import Template
from intarsia.errors import ConfigError, DataError, nearest

KINDS = ("classification", "multi-label", "regression", "token-classification", "generation")
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
    """One column, or two for a sentence pair; with a template, its fields. None: guessed when obvious, and said."""
    label_column: str | None = None
    """The labels; for generation the texts to generate, or lists of such texts. None: guessed when obvious, and said."""
    kind: str | None = None
    """classification, multi-label, regression, token-classification or generation. None: guessed from the labels, and
    said; generation is never guessed."""
    labels: tuple[str, ...] | None = None
    """Label names of an existing task, in its order; another label is an error. None: those of the training rows. For
    generation the legal outputs of a text-to-text task."""
    template: str | None = None
    """How the columns become one text: `"{sentence1} ? {prompt:3} {mask}"` (intarsia.data.template)."""
    text_to_text: bool = False
    """kind generation only: the label column holds classes, which are generated as words (Lester et al. 2021)."""
    label_words: Mapping[str, str] | None = None
    """text_to_text only: label -> the word to generate for it. A label that is left out is its own word."""
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
        if self.kind is not None and self.kind not in KINDS:
            raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}{nearest(self.kind, KINDS)}")
        self._check_columns()
        self._check_generation()
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction must lie between 0 and 1, got {self.validation_fraction}")
        if self.split_seed < 0:
            raise ConfigError(f"split_seed must not be negative, got {self.split_seed}")

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The text columns, as far as the spec says: the template's fields, or `text_columns`."""
        return Template.parse(self.template).columns if self.template is not None else self.text_columns

    def _check_columns(self) -> None:
        columns, given = self.columns, self.text_columns
        if self.template is not None:
            if self.kind == "token-classification":
                raise ConfigError("a template makes one text of a row, and token-classification needs its words")
            if given is not None and tuple(given) != columns:
                raise ConfigError(
                    f"text_columns {given!r} are not the template's fields, {columns!r}; leave text_columns out"
                )
        elif given is not None and (isinstance(given, str) or len(given) not in (1, 2)):
            raise ConfigError(f"text_columns must name one column, or two for a pair, got {given!r}")
        if columns and (len(set(columns)) < len(columns) or self.label_column in columns):
            raise ConfigError(f"text_columns {columns!r} and label_column {self.label_column!r} must differ")

    def _check_generation(self) -> None:
        if self.kind == "generation":
            if self.template is not None and Template.parse(self.template).has_mask:
                raise ConfigError("{mask} is filled by a classification task; take it out of the generation template")
            if self.labels and not self.text_to_text:
                raise ConfigError("labels are the legal outputs of a text-to-text task; set text_to_text to true")
        elif self.text_to_text:
            raise ConfigError(f"text_to_text generates the labels as words: set kind to generation, got {self.kind!r}")
        if self.label_words is not None and not self.text_to_text:
            raise ConfigError("label_words are what a text-to-text task generates; set text_to_text to true")


@dataclass(slots=True)
class Rows:
    """The rows of one split, checked: no text is empty, every label is known."""

    texts: list[tuple[str, ...]]
    """(text,) or (first, second) of each row; with a template its fields; for token-classification the row's words."""
    labels: Sequence[Any] | None = None
    """Of each row: the class as an int; a float for regression; a list of 0/1, one per class, for multi-label;
    a list of class ints, one per word, for token-classification; for generation the list of references, str, of which
    the first is trained on. None: no labels."""

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
    """Label names, in the order of the class ints; the legal outputs of a text-to-text task; () for regression and for
    generation of free text."""
    train: Rows | None
    validation: Rows | None
    test: Rows | None
    text_columns: tuple[str, ...]
    label_column: str
    notes: list[str] = field(default_factory=list)
    """Each guess and each row left out, one sentence each, for the user to see."""
    fingerprint: str = ""
    """sha256 over kind, label names, template and the rows of every split."""

    def split(self, name: str) -> Rows:
        """The split `name`; DataError says which splits there are."""
        there = {split: len(rows) for split in SPLITS if (rows := getattr(self, split)) is not None}
        if name not in there:
            have = ", ".join(f"{split} ({count:,} rows)" for split, count in there.items())
            raise DataError(f"there is no {name!r} split; there is {have}{nearest(name, list(there))}")
        return getattr(self, name)
