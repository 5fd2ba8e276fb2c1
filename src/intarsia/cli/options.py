"""Options that several commands share, so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

TaskDir = Annotated[Path, typer.Argument(metavar="TASK_DIR", help="A task folder written by `intarsia train`.")]
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="D", help="embedded:NAME, hub:NAME, or a CSV, TSV, JSONL or Parquet file."),
]
TextColumns = Annotated[
    str | None,
    typer.Option(metavar="A[,B]", help="The column of the text, or of both texts of a pair."),
]
LabelColumn = Annotated[str | None, typer.Option(metavar="C", help="The column of the label.")]
Split = Annotated[str, typer.Option(help="train, validation or test.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16: what the backbone computes in.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
OtherBackbone = Annotated[
    str | None,
    typer.Option("--backbone", metavar="B", help="Where the backbone is now. Default: the name in the task folder."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows per batch.")]


def names(columns: str | None) -> tuple[str, ...] | None:
    """`a,b` as ("a", "b")."""
    return tuple(part.strip() for part in columns.split(",")) if columns else None
