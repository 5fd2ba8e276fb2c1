"""`intarsia recipes`."""

from dataclasses import asdict
from typing import Annotated

import typer

from intarsia.cli import options
from intarsia.cli.output import print_json, print_table


def add(app: typer.Typer) -> None:
    app.command(
        "recipes", help="What compare starts from: sizes, learning rates, lengths, and the figures behind them."
    )(recipes)


def recipes(
    method: Annotated[
        list[str] | None, typer.Option(metavar="M", help="A method; may be given many times.  [default: all]")
    ] = None,
    kind: Annotated[str, typer.Option(metavar="K", help="The kind of task, such as generation.")] = "classification",
    as_json: options.AsJson = False,
) -> None:
    from intarsia.data.spec import KINDS
    from intarsia.errors import ConfigError, nearest
    from intarsia.workflow.recipes import RECIPES, answers_of, recipe_of

    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}{nearest(kind, KINDS)}")
    every = RECIPES[answers_of(kind)].values()
    found = [recipe_of(name, kind) for name in method] if method else list(every)
    if as_json:
        plain = [{**asdict(recipe), "evidence": recipe.figures()} for recipe in found]
        print_json({"kind": kind, "recipes": plain})
        return
    headers = ["method", "size", "learning rates, best guess first", "rows seen", "other settings"]
    rows = [
        [
            recipe.method,
            f"{recipe.size} {', '.join(map(str, recipe.sizes))}" if recipe.size else "-",
            ", ".join(f"{rate:g}" for rate in recipe.learning_rates),
            f"{recipe.examples:,}",
            ", ".join(f"{key} {value}" for key, value in recipe.settings.items()) or "-",
        ]
        for recipe in found
    ]
    print_table(headers, rows)
    for recipe in found:
        print(f"\n{recipe.method}" + (f": {recipe.why}" if recipe.why else ""))
        for line in recipe.figures():
            print(f"  {line}")
