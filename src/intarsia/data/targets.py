"""Rows of generation tasks: one per reference for training, one per input for scoring, and labels as words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from intarsia.data.spec import Rows
from intarsia.errors import ConfigError, nearest


def per_reference(rows: Rows) -> Rows:
    """Each row once for each of its references: what is trained on."""
    assert rows.labels is not None
    pairs = [(texts, [one]) for texts, references in zip(rows.texts, rows.labels, strict=True) for one in references]
    return Rows([texts for texts, _ in pairs], [references for _, references in pairs])


def per_input(rows: Rows, split: str, notes: list[str]) -> Rows:
    """Rows of equal input as one row with all their references, in order of first appearance; said in `notes`.

    An input is generated for once, and its output is scored against every reference, as the published scorers do.
    """
    if rows.labels is None:
        return rows
    grouped: dict[tuple[str, ...], list[str]] = {}
    for texts, references in zip(rows.texts, rows.labels, strict=True):
        grouped.setdefault(texts, []).extend(references)
    if len(grouped) < len(rows):
        notes.append(f"{split}: {len(rows):,} rows, {len(grouped):,} distinct inputs")
    return Rows(list(grouped), list(grouped.values()))


def as_words(names: Sequence[str], words: Mapping[str, str]) -> tuple[str, ...]:
    """The word to generate for each label. ConfigError where a label is unknown, or two would read the same."""
    if unknown := [label for label in words if label not in names]:
        raise ConfigError(
            f"label_words names {unknown[0]!r}, and the labels are {', '.join(names)}{nearest(unknown[0], list(names))}"
        )
    of: dict[str, str] = {}
    for label in names:
        word = word_of(label, words)
        if word in of:
            raise ConfigError(
                f"labels {of[word]!r} and {label!r} would both be generated as {word!r}; give each its own label_words"
            )
        of[word] = label
    return tuple(of)


def word_of(label: str, words: Mapping[str, str]) -> str:
    """A label's word: spacing around it is not compared, so it is not part of it."""
    word = words.get(label, label).strip()
    if not word:
        raise ConfigError(f"the word of label {label!r} is empty; expected what is to be generated for it")
    return word
