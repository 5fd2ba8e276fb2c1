"""Printing, for all commands: tables in a terminal and in a file, JSON, and files that are whole or absent."""

import codecs
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


class Interrupted(Exception):  # noqa: N818 - not an error: a person pressed Ctrl-C
    """Ctrl-C, with the line that says how to go on."""


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: drawn by rich in a terminal, aligned columns elsewhere. An empty header row is left out."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Column, Table

        # Folded, where rich would cut a cell that is too wide: a path or a figure that ends in … is lost.
        columns = [Column(header, overflow="fold") for header in headers]
        table = Table(*columns, show_header=any(headers), box=None if not any(headers) else _box())
        for row in rows:
            table.add_row(*(cell.replace("[", r"\[") for cell in row))
        Console().print(table)
        return
    lines = [*([list(headers)] if any(headers) else []), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _box() -> Any:
    from rich import box

    return box.SIMPLE_HEAD


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout."""
    print(json.dumps(value, ensure_ascii=False))


def escape_what_stdout_lacks() -> None:
    """Characters that are not in stdout's encoding are written as JSON escapes them, \\u2193, so that a line of JSON stays one."""

    def escaped(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        return json.dumps(error.object[error.start : error.end])[1:-1], error.end

    codecs.register_error("json", escaped)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="json")


@contextmanager
def written_whole(path: Path | None) -> Iterator[TextIO]:
    """A text stream to `path` that appears there, complete, only when the block ends well; stdout where path is None.
    A pipe or device is written to as it is: a rename would put a file in the place of /dev/null. So would it of a link."""
    if path is None:
        yield sys.stdout
        return
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def number(value: float) -> str:
    """0.9312, 227,334."""
    return f"{value:,d}" if isinstance(value, int) else f"{value:.4f}"


def size(count: int) -> str:
    """Bytes as people say them: 912 B, 1.2 kB, 3.4 MB."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} B"
