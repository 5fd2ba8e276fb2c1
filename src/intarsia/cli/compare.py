"""`intarsia compare`."""

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from intarsia.cli import options
from intarsia.cli.output import Interrupted, print_table


def add(app: typer.Typer) -> None:
    app.command("compare", help="Find out which method suits a task, at what cost, in a given time.")(compare)


def compare(
    file: Annotated[
        Path | None,
        typer.Argument(
            parser=options.path, metavar="[COMPARE.yaml]", help="Settings in a file; the options below override it."
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="B", help="embedded:minilm, embedded:smollm2, a model folder, or a hub name.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="D", help="embedded:NAME or hub:NAME; for files see --train.")
    ] = None,
    train_file: Annotated[
        Path | None,
        typer.Option("--train", parser=options.path, metavar="FILE", help="CSV, TSV, JSONL or Parquet, also gzipped."),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            parser=options.path, metavar="FILE", help="The choice is made on it. Default: a tenth of the training rows."
        ),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(parser=options.path, metavar="FILE", help="Scored once the choice is made.")
    ] = None,
    text_columns: options.TextColumns = None,
    label_column: options.LabelColumn = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="K", help="The kind of task, such as generation.  [default: guessed, and said]"),
    ] = None,
    template: Annotated[str | None, typer.Option(metavar="T", help="How a row becomes one text.")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="M,M", help="See `intarsia recipes`.  [default: adapter,lora,prefix,ptuning-v2,prompt,full]"
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Fresh seeds of each method's best settings.  [default: 3]")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="30m, 2h: all in all, the report too.  [default: no limit]")
    ] = None,
    out: Annotated[Path | None, typer.Option(parser=options.path, metavar="DIR", help="The folder to write.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16, float16, int8 or nf4.  [default: auto]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...  [default: auto]")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in --out where it was stopped; needs no other option.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the file: train.batch_size=16.")
    ] = None,
) -> None:
    began = time.monotonic()
    flags = {
        "backbone": backbone,
        "data.data": data,
        "data.train": train_file,
        "data.validation": validation,
        "data.test": test,
        "data.text_columns": text_columns,
        "data.label_column": label_column,
        "data.kind": kind,
        "data.template": template,
        "methods": methods,
        "seeds": seeds,
        "budget": budget,
        "out": out,
        "dtype": dtype,
        "device": device,
    }
    from intarsia.workflow.compare import compare as run
    from intarsia.workflow.compare import settings as comparing

    chosen = comparing.resume if resume else comparing.resolve
    settings = chosen(file, flags, overrides or ())

    from intarsia.workflow.compare.live import open_view

    view = open_view()
    try:
        summary = run(settings, resume=resume, view=view, began=began)
    except KeyboardInterrupt as error:
        from intarsia.workflow.compare.ledger import FILE

        if not (settings.base.out / FILE).exists():
            raise Interrupted("stopped before the comparison began; nothing is lost, start it again") from error
        where = shlex.quote(str(settings.base.out))
        raise Interrupted(f"stopped; go on with: intarsia compare --out {where} --resume") from error
    finally:
        view.stop()

    from intarsia.workflow.compare.report import HTML, MARKDOWN
    from intarsia.workflow.compare.report.cells import costs, ranking
    from intarsia.workflow.compare.report.words import verdict
    from intarsia.workflow.compare.testing import BEST

    for table in (ranking(summary), costs(summary)):
        print_table(table.headers, table.rows)
        print()
    for line in verdict(summary):
        print(line)
    print(f"\nreport  {settings.base.out / HTML}, {settings.base.out / MARKDOWN}\ntask    {settings.base.out / BEST}")
