"""The command tree. Importing it must stay cheap: command modules import torch and the workflow inside their functions."""

from importlib.metadata import version
from typing import Annotated

import typer

from intarsia.cli import ablate, compare, doctor, evaluate, inspect, predict, recipes, serve, train

app = typer.Typer(
    help="Adapt one frozen pretrained transformer to many tasks, each a small file.",
    epilog="Start with: intarsia train --backbone embedded:minilm --data embedded:questions --method adapter --out runs/first",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"intarsia {version('intarsia')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


for _module in (train, evaluate, predict, compare, ablate, recipes, serve, inspect, doctor):
    _module.add(app)
