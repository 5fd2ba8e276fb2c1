"""`load_data`: from a `DataSpec` to checked rows, with a note for everything that was guessed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from intarsia.data.columns import choose_label_column, choose_text_columns
from intarsia.data.embedded import load_embedded
from intarsia.data.files import Table, encodes, read_table
from intarsia.data.hub import load_hub
from intarsia.data.labels import LISTED, guess_kind, is_missing, label_names, read_labels, to_numbers
from intarsia.data.spec import SPLITS, DataSpec, Rows, Splits
from intarsia.data.split import set_aside
from intarsia.data.targets import as_words, per_input, per_reference, word_of
from intarsia.data.texts import read_targets, read_texts
from intarsia.errors import ConfigError, DataError, nearest


def load_data(spec: DataSpec) -> Splits:
    """Read, check and number every split that `spec` names. DataError says what is wrong, where, and what to do."""
    notes: list[str] = []
    tables, given, label_column = _tables(spec, notes)
    base = next(iter(tables.values()))
    text_columns = choose_text_columns(base, given, label_column, notes)
    label_column = choose_label_column(
        base, label_column, text_columns, notes, None if spec.text_to_text else spec.kind
    )
    if label_column in text_columns:
        raise DataError(
            f"column {label_column!r} is both text and label; say which columns with --text-columns, --label-column"
        )
    kind = spec.kind or guess_kind(base, base.columns[text_columns[0]], label_column, notes)

    # The labels of a text-to-text task are read, checked and stratified as classes; words come last.
    read_as = "classification" if spec.text_to_text else kind
    texts = {split: read_texts(table, text_columns, kind) for split, table in tables.items()}
    found = {split: _labels(tables, split, label_column, read_as, texts[split], notes) for split in tables}
    names = _names(spec, tables, found, label_column, read_as)
    if spec.text_to_text:
        names, found = _words(spec, names, found)
    rows = {
        split: Rows(texts[split], None if labels is None else to_numbers(tables[split], labels, names, read_as))
        for split, labels in found.items()
    }
    if spec.labels is None:
        _note_alike(names, notes)
    _note_shared(rows, notes)
    _arrange(rows, spec, read_as, names, notes)
    splits = Splits(
        kind=kind,
        labels=names,
        train=rows.get("train"),
        validation=rows.get("validation"),
        test=rows.get("test"),
        text_columns=text_columns,
        label_column=label_column,
        notes=notes,
    )
    splits.fingerprint = _fingerprint(splits, spec.template)
    return splits


def load_rows_for_prediction(
    source: DataSpec | Path | str,
    text_columns: tuple[str, ...] | None = None,
    split: str = "test",
    kind: str | None = None,
) -> Rows:
    """The texts alone of one file, or of one split of a spec: rows with `labels` None; no label column is needed.

    text_columns None: those of the spec, else guessed. kind: the task's; None accepts text and lists of words.
    """
    if not isinstance(source, DataSpec):
        table, given, label = read_table(source), None, None
    elif source.data is None:
        path = getattr(source, split) if split in SPLITS else None
        if path is None:
            given = ", ".join(name for name in SPLITS if getattr(source, name) is not None)
            raise DataError(f"no {split!r} file is given; there is {given}{nearest(split, SPLITS)}")
        table, given, label = read_table(path), source.columns, source.label_column
    else:
        tables, given, label = _tables(source, [])
        if split not in tables:
            raise DataError(f"{source.data} has no {split!r} split; it has {', '.join(tables)}{nearest(split, SPLITS)}")
        table = tables[split]
    columns = choose_text_columns(table, text_columns or given, label, [])
    return Rows(read_texts(table, columns, kind))


def _tables(spec: DataSpec, notes: list[str]) -> tuple[dict[str, Table], tuple[str, ...] | None, str | None]:
    """The tables by split, train first, and the text and label columns where the spec or the source tells them."""
    if spec.data is None:
        paths = {split: getattr(spec, split) for split in SPLITS}
        tables = {split: read_table(path) for split, path in paths.items() if path is not None}
        return tables, spec.columns, spec.label_column
    source, _, name = spec.data.partition(":")
    if source == "embedded":
        ratings = spec.kind == "regression" or spec.label_column == "rating"
        tables, label, said = load_embedded(name, ratings=ratings)
        notes += said
        return tables, spec.columns or ("text",), spec.label_column or label
    if source == "hub":
        return load_hub(name, notes), spec.columns, spec.label_column
    hint = "; give a file with --train, --validation or --test" if Path(spec.data).suffix else ""
    hint = "; files must be local: download it, and give it with --train" if "://" in spec.data else hint
    raise ConfigError(f"data must be embedded:NAME or hub:NAME, got {spec.data!r}{hint}")


def _labels(
    tables: dict[str, Table], split: str, column: str, kind: str, texts: list[tuple[str, ...]], notes: list[str]
) -> list[Any] | None:
    """The labels as read, or None for a test split without them: no such column, all empty, or all -1 (GLUE)."""
    table = tables[split]
    if split == "test" and len(tables) > 1:
        known = next(iter(tables.values())).columns[column]
        withheld = [value for value in (-1, "-1", []) if value not in known]
        if all(is_missing(value) or value in withheld for value in table.columns.get(column, [])):
            what = "withheld" if column in table.columns else f"no column {column!r}"
            notes.append(f"{table.source}: taken as unlabelled ({what})")
            return None
    if column not in table.columns:
        have, near = ", ".join(table.columns), nearest(column, list(table.columns))
        raise DataError(f"{table.source}: no label column {column!r}; its columns are {have}{near}")
    if kind == "generation":
        return read_targets(table, column)
    return read_labels(table, column, kind, texts)


def _names(
    spec: DataSpec, tables: dict[str, Table], found: dict[str, list[Any] | None], column: str, kind: str
) -> tuple[str, ...]:
    """Label names in class order: the task's, the hub's, or the sorted labels of the training rows."""
    if kind in ("regression", "generation"):
        return ()
    if spec.labels is not None:
        return spec.labels
    split = next(iter(tables))
    seen = [name for label in found[split] or [] for name in (label if kind in LISTED else (label,))]
    if split == "train" and len(set(seen)) < (1 if kind == "multi-label" else 2):
        only = f"one label, {seen[0]!r}" if seen else "no label at all"
        raise DataError(f"{tables[split].source}: column {column!r} holds {only}; there is nothing to learn")
    names = tables[split].class_names.get(column) or label_names(seen)
    if not all(map(encodes, names)):
        raise DataError(f"{tables[split].source}: column {column!r} holds half a surrogate pair, which is no text")
    return names


def _words(
    spec: DataSpec, names: tuple[str, ...], found: dict[str, list[Any] | None]
) -> tuple[tuple[str, ...], dict[str, list[Any] | None]]:
    """Label names and labels as the words that are generated for them. `spec.labels` are words already."""
    chosen = spec.label_words or {}
    words = spec.labels or as_words(names, chosen)
    return words, {
        split: None if labels is None else [word_of(label, chosen) for label in labels]
        for split, labels in found.items()
    }


def _note_alike(names: tuple[str, ...], notes: list[str]) -> None:
    """Says so where labels differ in case or blanks alone: they are different classes."""
    like: dict[str, str] = {}
    for name in names:
        first = like.setdefault(" ".join(name.casefold().split()), name)
        if first != name:
            notes.append(f"labels {first!r} and {name!r} differ in case or blanks alone, and are two classes")
            return


def _note_shared(rows: dict[str, Rows], notes: list[str]) -> None:
    """Says so where validation or test rows stand in training too: their scores would flatter."""
    trained = set(rows["train"].texts) if "train" in rows else set()
    for split in ("validation", "test"):
        count = sum(texts in trained for texts in rows[split].texts) if split in rows else 0
        if count:
            notes.append(f"{split}: {count:,} of {len(rows[split]):,} texts are training texts too")


def _arrange(rows: dict[str, Rows], spec: DataSpec, kind: str, names: tuple[str, ...], notes: list[str]) -> None:
    """Sets validation rows aside where none are given, and brings the rows of generation into their shape."""
    if kind == "generation" and "train" in rows:
        rows["train"] = per_reference(rows["train"])
    if "train" in rows and "validation" not in rows:
        _set_aside(rows, spec, kind, notes)
    for split, part in rows.items():
        if spec.text_to_text and part.labels is not None:
            part.labels = [[names[label]] for label in part.labels]
        elif kind == "generation" and split != "train":
            rows[split] = per_input(part, split, notes)


def _set_aside(rows: dict[str, Rows], spec: DataSpec, kind: str, notes: list[str]) -> None:
    """Takes the validation rows out of the training rows, and says so."""
    total = len(rows["train"])
    rows["train"], rows["validation"] = set_aside(rows["train"], kind, spec.validation_fraction, spec.split_seed)
    how = f"{'stratified by label' if kind == 'classification' else 'drawn at random'}, seed {spec.split_seed}"
    notes.append(f"no validation split: {len(rows['validation']):,} of {total:,} training rows set aside, {how}")


def _fingerprint(splits: Splits, template: str | None) -> str:
    described = [splits.kind, splits.labels] if template is None else [splits.kind, splits.labels, template]
    digest = hashlib.sha256(json.dumps(described).encode())
    for name in SPLITS:
        rows = getattr(splits, name)
        digest.update(json.dumps([name, rows and rows.texts, rows and rows.labels]).encode())
    return digest.hexdigest()
