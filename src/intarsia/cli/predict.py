"""`intarsia predict`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from intarsia.cli import options
from intarsia.cli.output import written_whole
from intarsia.errors import ConfigError


def add(app: typer.Typer) -> None:
    app.command("predict", help="Answer texts with a saved task: one JSON line each (prediction, label, scores).")(
        predict
    )


def predict(
    task_dir: options.TaskDir,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A text; may be given many times. For a task on pairs, two of them make one row."),
    ] = None,
    data: options.Data = None,
    split: options.Split = "test",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write here instead of standard output.")] = None,
    text_columns: options.TextColumns = None,
    backbone: options.OtherBackbone = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    batch_size: options.BatchSize = 32,
) -> None:
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ConfigError(f"--out must be a file in a folder that exists, got {out}")
    from intarsia import workflow

    answers = workflow.predict(
        task_dir,
        _rows(text, task_dir) if text else None,
        data,
        split,
        text_columns=options.names(text_columns),
        batch_size=batch_size,
        backbone=backbone,
        dtype=dtype,
        device=device,
    )
    with written_whole(out) as file:
        for answer in answers:
            file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")


def _rows(texts: Sequence[str], task_dir: Path) -> Sequence[str | tuple[str, ...]]:
    """Texts as rows: by twos where the task takes pairs."""
    from intarsia.workflow.scoring import takes_pairs

    if not takes_pairs(task_dir):
        return texts
    if len(texts) % 2:
        raise ConfigError(f"this task takes pairs: give --text twice for each row, got {len(texts)} texts")
    return list(zip(texts[::2], texts[1::2], strict=True))
