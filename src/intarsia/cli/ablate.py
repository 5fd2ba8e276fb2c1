"""`intarsia ablate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intarsia.cli import options
from intarsia.cli.output import print_json, print_table

if TYPE_CHECKING:
    from intarsia.workflow.ablation import Ablation


def add(app: typer.Typer) -> None:
    app.command("ablate", help="Score a task with modules taken out: layers, virtual tokens; nothing is trained.")(
        ablate
    )


def ablate(
    task_dir: Annotated[
        Path, typer.Argument(parser=options.path, metavar="TASK_DIR", help="A task folder written by `intarsia train`.")
    ],
    data: options.Data = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test.  [default: validation]")] = None,
    metric: Annotated[str | None, typer.Option(help="[default: accuracy, f1, ... by the kind of task]")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Score a sample of so many rows.  [default: all]")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the score that may be lost by what is left out.")
    ] = 0.01,
    out: Annotated[
        Path | None, typer.Option(parser=options.path, metavar="DIR", help="Write ablation.html, .md and .json there.")
    ] = None,
    backbone: options.OtherBackbone = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    batch_size: options.BatchSize = 32,
    as_json: options.AsJson = False,
) -> None:
    from intarsia.workflow import ablation_report as report
    from intarsia.workflow.ablation import ablate as run
    from intarsia.workflow.asked import check_folder

    if out is not None:
        check_folder(out)
    found = run(
        task_dir,
        data,
        split,
        metric=metric,
        most_rows=rows,
        tolerance=tolerance,
        batch_size=batch_size,
        backbone=backbone,
        dtype=dtype,
        device=device,
    )
    # Printed first: nothing of it is lost where the folder cannot be written after all.
    _print(found, as_json=as_json)
    if out is None:
        return
    report.write(found, out)
    if not as_json:
        print(f"\nreport  {out / report.FILES[0]}, {out / report.FILES[1]}")


def _print(found: "Ablation", *, as_json: bool) -> None:
    from intarsia.workflow import ablation_report as report

    if as_json:
        print_json(report.as_dict(found))
        return
    for stack in found.stacks:
        print(f"without the modules of a span of layers ({stack.name})")
        print_table(*report.spans(found, stack)[0])
        print()
        if len(stack.blocks) < stack.depth:
            print_table(*report.single(found, stack))
            print()
        print_table(*report.dropped(found, stack))
        print()
    if found.lengths:
        print_table(*report.lengths(found))
        print()
    for line in report.words(found):
        print(line)
