"""Options that several commands share, so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated, Any

import typer


def path(text: str) -> Path:
    """What every option for a path is read by."""
    from intarsia.workflow.runfile import given_path

    try:
        return given_path(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


TaskDirs = Annotated[
    list[Path],
    typer.Argument(
        metavar="TASK_DIR...", parser=path, help="A task folder written by `intarsia train`; several of them vote."
    ),
]
Combine = Annotated[
    str | None,
    typer.Option(metavar="HOW", help="How several tasks vote on each row: majority, or mean (of probabilities)."),
]
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="D", help="embedded:NAME, hub:NAME, or a CSV, TSV, JSONL or Parquet file."),
]
TextColumns = Annotated[
    str | None,
    typer.Option(metavar="A[,B]", help="The column of the text, or of both texts of a pair."),
]
LabelColumn = Annotated[str | None, typer.Option(metavar="C", help="The column of the label.")]
Split = Annotated[str | None, typer.Option(help="train, validation or test.  [default: test]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Dtype = Annotated[
    str, typer.Option(help="auto, float32, bfloat16, float16, int8 or nf4: what the backbone computes in.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
OtherBackbone = Annotated[
    str | None,
    typer.Option("--backbone", metavar="B", help="Where the backbone is now. Default: the name in the task folder."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows per batch.")]

# How text is generated. None: as the task was trained to be used.
Beams = Annotated[
    int | None, typer.Option(help="Generation: beams of beam search; 1 is greedy.  [default: the task's]")
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Generation: longest output, in tokens.  [default: the task's]")]
LengthPenalty = Annotated[
    float | None, typer.Option(help="Beams: above 0 favours long outputs.  [default: the task's]")
]
Sample = Annotated[
    bool | None, typer.Option("--sample/--no-sample", help="Generation: draw each token.  [default: the task's]")
]
Temperature = Annotated[float | None, typer.Option(help="Sampling: below 1 is less random.  [default: the task's]")]
TopP = Annotated[
    float | None, typer.Option(help="Sampling: from the likeliest tokens of this share.  [default: the task's]")
]


def generation(**settings: Any) -> dict[str, Any]:
    """The settings that were given."""
    return {name: value for name, value in settings.items() if value is not None}


def names(columns: str | None) -> tuple[str, ...] | None:
    """`a,b` as ("a", "b")."""
    return tuple(part.strip() for part in columns.split(",")) if columns else None
