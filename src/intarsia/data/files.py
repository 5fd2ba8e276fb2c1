"""Files to tables: CSV, TSV, JSONL, Parquet; the text formats also gzipped.

The whole file is read at once and every value keeps its place, so that an error can name the line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intarsia.errors import DataError, nearest

FORMATS = ".csv, .tsv, .jsonl (each also with .gz) or .parquet"

MARKS = {
    (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"): "UTF-32",
    (b"\xff\xfe", b"\xfe\xff"): "UTF-16",
}
"""The byte order marks of encodings that are not read."""
SEPARATORS = {";": "", "|": "", "\t": ", or name it .tsv", ",": ", or name it .csv"}
"""What else may stand between columns, and what to do besides writing the file anew."""


@dataclass(slots=True)
class Table:
    """Named columns of equal length, and where each row stood in its source."""

    source: str
    columns: dict[str, list[Any]]
    numbers: Sequence[int]
    """Line (text formats) or row number of each row, from 1."""
    unit: str = "line"
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """For integer columns that come with names (the hub's ClassLabel): column -> names by class int."""

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, row: int) -> str:
        """`train.csv, line 17`"""
        return f"{self.source}, {self.unit} {self.numbers[row]}"

    def bad_rows(self, rows: Sequence[int], what: str) -> DataError:
        """The error for `rows` that all have the same fault: it names the first and counts them."""
        return DataError(
            f"{self.where(rows[0])}: {what}; {len(rows):,} such row{'s' * (len(rows) > 1)} of {len(self):,}"
        )


def read_table(path: Path | str, suffix: str | None = None) -> Table:
    """Read one file, format by its suffix unless one is given. DataError names the file and line of what is wrong."""
    path = Path(path)
    name = path.name.lower()
    suffix = suffix or Path(name.removesuffix(".gz")).suffix
    if re.match(r"\w+:/", str(path)) and not path.exists():  # Path makes one slash of two
        raise DataError(f"{path}: an address; files must be local: download it, or give hub:NAME")
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected a file, {FORMATS}")
    reader = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl}.get(suffix)
    if reader is None and not name.endswith(".parquet"):
        hint = "; JSON must be one object per line, in a .jsonl file" if suffix == ".json" else ""
        if str(path) in ("-", "/dev/stdin") or (path.exists() and not path.is_file()):
            hint = "; rows are not read from standard input or a pipe: write them to a file first"
        raise DataError(f"{path}: unknown format, expected {FORMATS}{hint}")
    raw = _read_bytes(path)
    table = reader(_decode(raw, path.name), path.name) if reader else _parquet(raw, path.name)
    if not len(table):
        header = " after the header line" if reader in (_csv, _tsv) else ""
        raise DataError(f"{path}: zero rows; expected at least one{header}")
    return table


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        known = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file{nearest(path.name, known)}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not raw:
        raise DataError(f"{path}: the file is empty")
    if not path.name.lower().endswith(".gz"):
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a complete gzip file ({error}); make it again, or drop the .gz") from error


def _decode(raw: bytes, name: str) -> str:
    for marks, encoding in MARKS.items():  # UTF-32 first: its mark begins with that of UTF-16
        if raw.startswith(marks):
            raise DataError(f"{name}: {encoding}, expected UTF-8; convert it with `iconv -f {encoding} -t UTF-8`")
    if raw[:2] == b"\x1f\x8b":
        raise DataError(f"{name}: gzip content; add .gz to the file's name")
    try:
        # -sig drops the byte order mark that spreadsheets write; some tools put another before it.
        text = raw.decode("utf-8-sig").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        # utf-8-sig counts from behind the mark; a line break never lies within it
        start = error.start + (3 if raw.startswith(b"\xef\xbb\xbf") else 0)
        line = raw.count(b"\n", 0, start) + 1
        hint = "if the file is Latin-1, convert it with `iconv -f LATIN1 -t UTF-8`"
        raise DataError(f"{name}, line {line}: byte 0x{raw[start]:02x} is not UTF-8; {hint}") from error
    if (nul := text.find("\0")) >= 0:
        raise DataError(f"{name}, line {text.count(chr(10), 0, nul) + 1}: a NUL byte; expected a UTF-8 text file")
    return text


def _lines(text: str, name: str) -> list[str]:
    """Cut at line feeds. Not by splitlines: it also cuts at U+2028, U+0085."""
    if "\n" not in text and "\r" in text.strip():
        raise DataError(f"{name}: its lines end in a carriage return alone; convert it with `tr '\\r' '\\n'`")
    return text.split("\n")


def _csv(text: str, name: str) -> Table:
    """Standard quoting: a quoted field may hold commas, line breaks and doubled quotes."""
    limit = csv.field_size_limit(max(len(text), 1))  # the default of 128 KiB refuses long texts
    records, numbers, start = [], [], 1
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for record in reader:
            if record:  # a blank line is no row
                records.append(record)
                numbers.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}, line {start}: broken quoting ({error}); write a quote inside a quoted field as two"
        ) from error
    finally:
        csv.field_size_limit(limit)
    _check_separator(records, name, "commas")
    return _from_records(records, numbers, name, "")


def _tsv(text: str, name: str) -> Table:
    """No quoting, as GLUE writes it: every tab separates, quotation marks are text."""
    lines = [line.removesuffix("\r") for line in _lines(text, name)]
    numbers = [i for i, line in enumerate(lines, 1) if line]
    hint = "; TSV is read without quoting, a text cannot hold tabs or line breaks"
    records = [lines[i - 1].split("\t") for i in numbers]
    _check_separator(records, name, "tabs")
    return _from_records(records, numbers, name, hint)


def _check_separator(records: list[list[str]], name: str, expected: str) -> None:
    """DataError where the header is one column, and what separates others stands in it and in the row below."""
    if len(records) < 2 or len(records[0]) > 1:
        return
    (header,) = records[0]
    for mark, rename in SEPARATORS.items():
        if mark in header and any(mark in value for value in records[1]):
            raise DataError(
                f"{name}: columns must be separated by {expected}, and {mark!r} stands between those of the header "
                f"{header!r}; write the file with {expected}{rename}"
            )


def _from_records(records: list[list[str]], numbers: list[int], name: str, hint: str) -> Table:
    if not records:
        raise DataError(f"{name}: zero rows; the first line must name the columns")
    # An index column is written without a name by pandas and R; give it one that no guess takes.
    header = [column.strip() or f"column {i}" for i, column in enumerate(records[0], 1)]
    _no_duplicates(header, name)
    for record, number in zip(records, numbers, strict=True):
        if len(record) != len(header):
            fields = f"{len(record)} field{'s' * (len(record) != 1)}"
            raise DataError(f"{name}, line {number}: {fields}, but the header names {len(header)} columns{hint}")
    columns = [list(values) for values in zip(*records[1:], strict=True)] or [[] for _ in header]
    return Table(name, dict(zip(header, columns, strict=True)), numbers[1:])


def _no_duplicates(columns: Sequence[str], name: str) -> None:
    if twice := [column for column in dict.fromkeys(columns) if columns.count(column) > 1]:
        raise DataError(
            f"{name}: column {twice[0]!r} occurs {columns.count(twice[0])} times; every column needs its own name"
        )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in row if keys.count(key) > 1)!r}")
    return row


def _jsonl(text: str, name: str) -> Table:
    rows, numbers = [], []
    for number, line in enumerate(_lines(text, name), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique_keys)
        except RecursionError:
            raise DataError(f"{name}, line {number}: JSON nested too deeply; expected a flat object") from None
        except ValueError as error:  # bad JSON, a duplicate key, or an integer of thousands of digits
            raise DataError(f"{name}, line {number}: not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number}: a JSON {type(row).__name__}; expected one object per line")
        rows.append(row)
        numbers.append(number)
    keys = dict.fromkeys(key for row in rows for key in row)
    if not all(map(encodes, keys)):
        raise DataError(f"{name}: the name of a column holds half a surrogate pair, which is no text")
    return Table(name, {key: [row.get(key) for row in rows] for key in keys}, numbers)


def encodes(text: str) -> bool:
    """Whether it is text: JSON can spell half a surrogate pair, "\\ud800"."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet(raw: bytes, name: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(raw))
        _no_duplicates(file.schema_arrow.names, name)
        table = file.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name}: not a readable Parquet file: {str(error).splitlines()[0]}") from error
    columns = {}
    for column in table.column_names:
        try:
            columns[column] = table[column].to_pylist()
        except (pa.ArrowException, OverflowError, ValueError) as error:  # dates beyond Python's, text that is not UTF-8
            what = (
                f"{name}: column {column!r} of type {table[column].type} cannot be read: {str(error).splitlines()[0]}"
            )
            raise DataError(f"{what}; write the file without it, or as text") from error
    return Table(name, columns, range(1, file.metadata.num_rows + 1), unit="row")
