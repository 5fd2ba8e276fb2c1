"""`intarsia train`."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intarsia.cli import options
from intarsia.cli.output import Interrupted, number, print_table, size
from intarsia.errors import TrainingError

if TYPE_CHECKING:
    from intarsia.workflow import Trained

METHOD_NAMES = "adapter, lora, prefix, ptuning-v2, prompt, ptuning, full, top-layers, layer-norm, bitfit, head"
"""Written out, since asking `intarsia.methods` would load torch for the help."""


def add(app: typer.Typer) -> None:
    app.command("train", help="Train a task on a frozen backbone and save it in a folder.")(train)


def train(
    run_file: Annotated[
        Path | None,
        typer.Argument(
            parser=options.path,
            metavar="[RUN.yaml]",
            help="Settings in a file, of one run or of several (`runs`); the options below override it.",
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
        typer.Option(parser=options.path, metavar="FILE", help="Default: a seeded tenth of the training rows."),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(parser=options.path, metavar="FILE", help="Scored once, after training.")
    ] = None,
    text_columns: options.TextColumns = None,
    label_column: options.LabelColumn = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="K", help="The kind of task, such as generation.  [default: guessed, and said]"),
    ] = None,
    template: Annotated[
        str | None, typer.Option(metavar="T", help='How a row becomes one text: "{title}: {body} It was {mask}."')
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="M", help=f"One of {METHOD_NAMES}.")] = None,
    out: Annotated[
        Path | None, typer.Option(parser=options.path, metavar="DIR", help="The task folder to write.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.  [default: 3]")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Steps; replaces --epochs.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.  [default: the method's own]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per step.  [default: 16]")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same weights on CPU.  [default: 0]")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16, float16, int8 or nf4.  [default: auto]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...  [default: auto]")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out; needs no other option.")
    ] = False,
    score_test: Annotated[
        bool,
        typer.Option(
            "--score-test", help="After training, score the data's own test split; a test file is scored anyway."
        ),
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the run file: method.width=48.")
    ] = None,
    log: Annotated[str | None, typer.Option(help="tensorboard, wandb or trackio, where installed.")] = None,
) -> None:
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
        "method.name": method,
        "out": out,
        "train.epochs": epochs,
        "train.max_steps": max_steps,
        "train.learning_rate": lr,
        "train.batch_size": batch_size,
        "train.seed": seed,
        "dtype": dtype,
        "device": device,
        "log": log,
    }
    from intarsia.workflow.settings import is_pack, resolve, resume_settings

    if is_pack(run_file):
        assert run_file is not None
        return _train_pack(run_file, flags, overrides or (), resume=resume, score_test=score_test or None)
    chosen = resume_settings if resume else resolve
    settings = chosen(run_file, flags, overrides or ())

    from intarsia.training import open_reporter
    from intarsia.workflow.training import run

    try:
        result = run(settings, resume=resume, score_test=score_test or None, report=open_reporter())
    except KeyboardInterrupt as error:
        from intarsia.training.record import RUN

        if not (settings.out / RUN).exists():
            raise Interrupted("stopped before the training began; nothing is lost, start it again") from error
        raise Interrupted(
            f"stopped; go on with: intarsia train --out {shlex.quote(str(settings.out))} --resume"
        ) from error
    _print_result(result)


def _train_pack(
    run_file: Path, flags: Mapping[str, Any], overrides: Sequence[str], *, resume: bool, score_test: bool | None
) -> None:
    from intarsia.training import Failed
    from intarsia.training.progress import open_pack_reporter
    from intarsia.workflow.pack import draw_runs, name_of, run_pack
    from intarsia.workflow.settings import resolve_pack

    runs = resolve_pack(run_file, flags, overrides)
    try:
        results = draw_runs(run_pack(runs, resume=resume, score_test=score_test, report=open_pack_reporter()))
    except KeyboardInterrupt as error:
        given = _given(run_file, flags, overrides) + " --score-test" * bool(score_test)
        raise Interrupted(f"stopped; go on with: intarsia train {given} --resume") from error
    rows, failed = [], [result for result in results if isinstance(result, Failed)]
    tested = any("test" in result.metrics for result in results if not isinstance(result, Failed))
    for settings, result in zip(runs, results, strict=True):
        if not isinstance(result, Failed):
            shown = _scores(result.metrics, settings.train.metric, tested=tested)
            rows.append([name_of(settings), *shown, number(result.parameters), size(result.size), str(result.folder)])
    if rows:
        scores = ["validation", "test"] if tested else ["score", ""]
        print_table(["run", *scores, "parameters", "size", "task"], rows)
    said = [f"run {one.name!r} failed: {one.message}" for one in failed]
    if len(failed) > 1:
        print("\n".join(said), file=sys.stderr)
        raise TrainingError(f"{len(failed)} of the {len(runs)} runs failed, as the lines above say")
    if failed:
        raise TrainingError(said[0])


def _scores(metrics: Mapping[str, Mapping[str, float]], chosen: str | None, *, tested: bool) -> list[str]:
    """Two cells of a pack's table: the first score of validation and of the test split, or the first two where no run is tested. A
    run of text has its loss alone. The first is the metric that the run was told to choose by, where it was told one."""
    found = {
        split: [f"{name} {number(scores[name])}" for name in sorted(scores, key=lambda name: name != chosen)] or [""]
        for split, scores in metrics.items()
    }
    if tested:
        return [found.get(split, [""])[0] for split in ("validation", "test")]
    return [*(cell for cells in found.values() for cell in cells), "", ""][:2]


def _given(run_file: Path, flags: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """What a pack was started with, as arguments: a run file does not know what the command line said beside it."""
    arguments = [str(run_file)]
    for key, value in flags.items():
        if value is not None:
            plain = json.dumps(value, default=str, ensure_ascii=False)
            arguments += ["--out", str(value)] if key == "out" else ["--set", f"{key}={plain}"]
    for override in overrides:
        arguments += ["--set", override]
    return shlex.join(arguments)


def _print_result(result: "Trained") -> None:
    rows = [
        [f"{split} {name}", number(value)] for split, scores in result.metrics.items() for name, value in scores.items()
    ]
    rows += [
        ["trained parameters", number(result.parameters)],
        ["size on disk", size(result.size)],
        ["time", f"{result.seconds:.0f} s"],
        ["task", str(result.folder)],
    ]
    print_table(["", ""], rows)
