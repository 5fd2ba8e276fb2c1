"""`intarsia evaluate`."""

from dataclasses import asdict

import typer

from intarsia.cli import options
from intarsia.cli.output import number, print_json, print_table


def add(app: typer.Typer) -> None:
    app.command("evaluate", help="Score a saved task on labelled rows.")(evaluate)


def evaluate(
    task_dir: options.TaskDir,
    data: options.Data = None,
    split: options.Split = "test",
    text_columns: options.TextColumns = None,
    label_column: options.LabelColumn = None,
    backbone: options.OtherBackbone = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    batch_size: options.BatchSize = 32,
    as_json: options.AsJson = False,
) -> None:
    from intarsia import workflow

    result = workflow.evaluate(
        task_dir,
        data,
        split,
        text_columns=options.names(text_columns),
        label_column=label_column,
        batch_size=batch_size,
        backbone=backbone,
        dtype=dtype,
        device=device,
    )
    if as_json:
        print_json(asdict(result))
        return
    rows = [["task", result.task], ["split", result.split], ["rows", number(result.rows)]]
    print_table(["", ""], rows + [[name, number(value)] for name, value in result.metrics.items()])
