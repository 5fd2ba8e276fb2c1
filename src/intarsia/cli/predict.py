"""`intarsia predict`."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from intarsia.cli import options
from intarsia.cli.output import Interrupted, written_whole
from intarsia.errors import ConfigError


def add(app: typer.Typer) -> None:
    app.command("predict", help="Answer texts with a saved task: one JSON line each (prediction, label, scores).")(
        predict
    )


def predict(
    task_dirs: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=options.path,
            metavar="[TASK_DIR...]",
            help="A task folder written by `intarsia train`; several of them vote.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A text; may be given many times. Of a task on pairs, two of them make one row."),
    ] = None,
    data: options.Data = None,
    split: options.Split = None,
    combine: options.Combine = None,
    tasks: Annotated[
        Path | None,
        typer.Option(
            parser=options.path,
            metavar="DIR",
            help="Instead of TASK_DIR: a folder of task folders. Each row of --data is answered by the task in its column "
            "`task`, or by all that can; answers come as they are made, and a stopped run goes on in the same --out.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=options.path, metavar="FILE", help="Write here instead of standard output.")
    ] = None,
    text_columns: options.TextColumns = None,
    backbone: options.OtherBackbone = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows per batch.  [default: 32; with --tasks what fits]")
    ] = None,
    beams: options.Beams = None,
    max_new_tokens: options.MaxNewTokens = None,
    length_penalty: options.LengthPenalty = None,
    sample: options.Sample = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
) -> None:
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ConfigError(f"--out must be a file in a folder that exists, got {out}")
    if out is not None and tasks is None and not os.access(out.absolute().parent, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write to {out}: its folder is none that you may write to; choose another --out")
    given = options.generation(
        beams=beams,
        max_new_tokens=max_new_tokens,
        length_penalty=length_penalty,
        sample=sample,
        temperature=temperature,
        top_p=top_p,
    )
    if tasks is not None:
        if unused := [*given, *options.generation(combine=combine, text_columns=text_columns, split=split)]:
            name = unused[0].replace("_", "-")
            raise ConfigError(
                f"--{name} is for TASK_DIR; with --tasks each task answers the rows of a file as it was trained to: leave it out"
            )
        _many(tasks, task_dirs, text, data, out, backbone=backbone, dtype=dtype, device=device, batch_size=batch_size)
        return
    if not task_dirs:
        raise ConfigError("predict needs a task folder, or --tasks with a folder of task folders")
    from intarsia import workflow

    answers = workflow.predict(
        task_dirs,
        _rows(text, task_dirs[0]) if text else None,
        data,
        split,
        combine=combine,
        text_columns=options.names(text_columns),
        batch_size=batch_size or 32,
        generation=given,
        backbone=backbone,
        dtype=dtype,
        device=device,
    )
    with written_whole(out) as file:
        for answer in answers:
            file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")


def _many(
    tasks: Path, task_dirs: list[Path] | None, text: list[str] | None, data: str | None, out: Path | None, **where: Any
) -> None:
    """All tasks of a folder, through the serving engine."""
    if task_dirs or text or data is None:
        raise ConfigError(
            "--tasks answers the rows of a file: give it with --data FILE, and neither TASK_DIR nor --text"
        )
    from intarsia.serving.bulk import predict_folder

    try:
        ended = predict_folder(tasks, options.path(data), out, **where)
    except KeyboardInterrupt as error:
        if out is None or not out.exists():
            raise
        raise Interrupted(f"stopped; the same command goes on behind the answers in {out}") from error
    if ended.left_out:
        said = "; ".join(f"{task} ({why})" for task, why in ended.left_out.items())
        print(f"left out: {said}", file=sys.stderr)
    went = f", {ended.before} stood there already" if ended.before else ""
    failed = f", {ended.failed} failed (their lines say why)" if ended.failed else ""
    print(f"{ended.answered} answers{failed}{went}", file=sys.stderr)


def _rows(texts: Sequence[str], task_dir: Path) -> Sequence[str | tuple[str, ...]]:
    """Texts as rows: by twos where the task takes pairs, by more where its template has more fields."""
    from intarsia.workflow.reading import texts_per_row

    count = texts_per_row(task_dir)
    if count == 1:
        return texts
    if len(texts) % count:
        raise ConfigError(
            f"this task takes {count} texts a row: give --text {count} times for each row, got {len(texts)} texts"
        )
    return [tuple(texts[at : at + count]) for at in range(0, len(texts), count)]
