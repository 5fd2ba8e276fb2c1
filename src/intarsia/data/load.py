"""`load_data`: from a `DataSpec` to checked rows, with a note for everything that was guessed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from intarsia.data.columns import choose_label_column, choose_text_columns
from intarsia.data.embedded import load_embedded
from intarsia.data.files import Table, read_table
from intarsia.data.hub import load_hub
from intarsia.data.labels import LISTED, guess_kind, is_missing, label_names, read_labels, to_numbers
from intarsia.data.spec import SPLITS, DataSpec, Rows, Splits
from intarsia.data.split import set_aside
from intarsia.data.texts import read_texts
from intarsia.errors import ConfigError, DataError, nearest


def load_data(spec: DataSpec) -> Splits:
    """Read, check and number every split that `spec` names. DataError says what is wrong, where, and what to do."""
    notes: list[str] = []
    tables, given, label_column = _tables(spec, notes)
    base = next(iter(tables.values()))
    text_columns = choose_text_columns(base, given, label_column, notes)
    label_column = choose_label_column(base, label_column, text_columns, notes)
    if label_column in text_columns:
        raise DataError(
            f"column {label_column!r} is both text and label; say which columns with --text-columns, --label-column"
        )
    kind = spec.kind or guess_kind(base, base.columns[text_columns[0]], label_column, notes)

    texts = {split: read_texts(table, text_columns, kind) for split, table in tables.items()}
    found = {split: _labels(tables, split, label_column, kind, texts[split], notes) for split in tables}
    names = _names(spec, tables, found, label_column, kind)
    rows = {
        split: Rows(texts[split], None if labels is None else to_numbers(tables[split], labels, names, kind))
        for split, labels in found.items()
    }
    if "train" in rows and "validation" not in rows:
        total = len(rows["train"])
        rows["train"], rows["validation"] = set_aside(rows["train"], kind, spec.validation_fraction, spec.split_seed)
        how = f"{'stratified by label' if kind == 'classification' else 'drawn at random'}, seed {spec.split_seed}"
        notes.append(f"no validation split: {len(rows['validation']):,} of {total:,} training rows set aside, {how}")
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
    splits.fingerprint = _fingerprint(splits)
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
        table, given, label = read_table(path), source.text_columns, source.label_column
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
        return tables, spec.text_columns, spec.label_column
    source, _, name = spec.data.partition(":")
    if source == "embedded":
        ratings = spec.kind == "regression" or spec.label_column == "rating"
        tables, label, said = load_embedded(name, ratings=ratings)
        notes += said
        return tables, spec.text_columns or ("text",), spec.label_column or label
    if source == "hub":
        return load_hub(name, notes), spec.text_columns, spec.label_column
    hint = "; give a file with --train, --validation or --test" if Path(spec.data).suffix else ""
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
    return read_labels(table, column, kind, texts)


def _names(
    spec: DataSpec, tables: dict[str, Table], found: dict[str, list[Any] | None], column: str, kind: str
) -> tuple[str, ...]:
    """Label names in class order: the task's, the hub's, or the sorted labels of the training rows."""
    if kind == "regression":
        return ()
    if spec.labels is not None:
        return spec.labels
    split = next(iter(tables))
    seen = [name for label in found[split] or [] for name in (label if kind in LISTED else (label,))]
    if split == "train" and len(set(seen)) < (1 if kind == "multi-label" else 2):
        only = f"one label, {seen[0]!r}" if seen else "no label at all"
        raise DataError(f"{tables[split].source}: column {column!r} holds {only}; there is nothing to learn")
    return tables[split].class_names.get(column) or label_names(seen)


def _fingerprint(splits: Splits) -> str:
    digest = hashlib.sha256(json.dumps([splits.kind, splits.labels]).encode())
    for name in SPLITS:
        rows = getattr(splits, name)
        digest.update(json.dumps([name, rows and rows.texts, rows and rows.labels]).encode())
    return digest.hexdigest()
