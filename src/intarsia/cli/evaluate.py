"""`intarsia evaluate`."""

from dataclasses import asdict

import typer

from intarsia.cli import options
from intarsia.cli.output import number, print_json, print_table


def add(app: typer.Typer) -> None:
    app.command("evaluate", help="Score a saved task, or the vote of several, on labelled rows.")(evaluate)


def evaluate(
    task_dirs: options.TaskDirs,
    data: options.Data = None,
    split: options.Split = None,
    combine: options.Combine = None,
    text_columns: options.TextColumns = None,
    label_column: options.LabelColumn = None,
    backbone: options.OtherBackbone = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    batch_size: options.BatchSize = 32,
    beams: options.Beams = None,
    max_new_tokens: options.MaxNewTokens = None,
    length_penalty: options.LengthPenalty = None,
    sample: options.Sample = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    as_json: options.AsJson = False,
) -> None:
    from intarsia import workflow

    result = workflow.evaluate(
        task_dirs,
        data,
        split,
        text_columns=options.names(text_columns),
        label_column=label_column,
        combine=combine,
        batch_size=batch_size,
        generation=options.generation(
            beams=beams,
            max_new_tokens=max_new_tokens,
            length_penalty=length_penalty,
            sample=sample,
            temperature=temperature,
            top_p=top_p,
        ),
        backbone=backbone,
        dtype=dtype,
        device=device,
    )
    if as_json:
        print_json(asdict(result))
        return
    from intarsia.data.spec import SPLITS

    where = "split" if result.split in SPLITS else "file"
    rows = [["task", result.task], [where, result.split], ["rows", number(result.rows)]]
    print_table(["", ""], rows + [[name, number(value)] for name, value in result.metrics.items()])
    if result.members:
        print()
        alone = [[task, *map(number, metrics.values())] for task, metrics in result.members.items()]
        print_table(["each task alone", *result.metrics], alone)
