"""From methods, sizes, initialisations and learning rates to candidates, and from a candidate to the settings of one run."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from intarsia.errors import ConfigError
from intarsia.methods import method_from_dict, method_to_dict
from intarsia.workflow.compare.settings import CompareSettings, Grid
from intarsia.workflow.recipes import BATCH, Recipe, recipe_of
from intarsia.workflow.sections import RunSettings

SECOND_SIZE = 3
"""A method's second size, or initialisation, comes after so many of its learning rates."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidate:
    """One choice of everything but the seed."""

    method: Mapping[str, Any]
    """As a run file has it, every field written out."""
    shape: str
    """In words, all but the learning rate: `lora rank 8`."""
    learning_rate: float
    train: Mapping[str, Any]
    """Its own settings of training."""
    steps: int
    """Optimizer steps of its full length."""
    level: int
    """0: the best guess; the higher, the sooner it is given up when time is short."""

    @property
    def name(self) -> str:
        """Unique in its comparison."""
        return f"{self.shape} lr {self.learning_rate:g}"

    @property
    def family(self) -> str:
        """The method's name."""
        return str(self.method["name"])


Part = tuple[str | None, dict[str, Any]]
"""In words, and as fields of the method."""


def expand(settings: CompareSettings, kind: str, rows: int) -> list[Candidate]:
    """All candidates, the best guesses first. kind: of the task; rows: of the training split."""
    found: list[Candidate] = []
    for name, grid in settings.methods.items():
        found += _of_method(grid, recipe_of(name, kind), settings, rows)
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{twice!r} is listed twice; take one of them out")
    return sorted(found, key=lambda one: one.level)


def _of_method(grid: Grid, recipe: Recipe, settings: CompareSettings, rows: int) -> list[Candidate]:
    own = {**recipe.settings, **grid.settings}
    sizes: list[Part] = [(None, {})]
    if grid.sizes is not None and recipe.size is None:
        raise ConfigError(f"methods.{recipe.method}.sizes: {recipe.method} has no size; leave sizes out")
    if recipe.size is not None and not (grid.sizes is None and recipe.size in own):
        field = recipe.size
        sizes = [(f"{field} {size}", {field: size}) for size in grid.sizes or recipe.sizes]
    inits: list[Part] = [(None, {})]
    if grid.inits is not None:
        inits = [_init(recipe, init) for init in grid.inits]
    train = {"batch_size": BATCH, **settings.base.train.model_dump(include=set(settings.given))}
    epochs = grid.epochs or train.pop("epochs", None) or recipe.epochs(rows)
    steps = epochs * steps_per_epoch(rows, train)
    found = []
    rates = grid.learning_rates or recipe.learning_rates
    for (s, (size, sized)), (i, (init, started)), (r, rate) in product(
        enumerate(sizes), enumerate(inits), enumerate(rates)
    ):
        method = {"name": recipe.method, **own, **sized, **started}
        found.append(
            Candidate(
                method=method_to_dict(method_from_dict(method)),
                shape=" ".join(filter(None, (recipe.method, size, init))),
                learning_rate=rate,
                train=train,
                steps=steps,
                level=r + SECOND_SIZE * (s + i),
            )
        )
    return found


def _init(recipe: Recipe, init: Any) -> tuple[str, dict[str, Any]]:
    """In words, and as fields of the method."""
    if isinstance(init, Mapping):
        words = " ".join(str(value) for value in init.values())
        return words if len(words) <= 40 else words[:37] + "...", dict(init)
    if recipe.init is None:
        raise ConfigError(f"methods.{recipe.method}.inits: {recipe.method} starts in one way only; leave inits out")
    text = f"{init:g}" if isinstance(init, int | float) else init
    return f"{recipe.init} {text}" if recipe.init != "init" else f"from {text}", {recipe.init: init}


def steps_per_epoch(rows: int, train: Mapping[str, Any]) -> int:
    """Optimizer steps of one pass over so many rows."""
    return math.ceil(math.ceil(rows / train["batch_size"]) / train.get("accumulate", 1))


def member(
    settings: CompareSettings, candidate: Candidate, *, folder: Path, seed: int, steps: int, evaluations: int
) -> RunSettings:
    """The settings of one run of a candidate, which `intarsia train` takes too. evaluations: how many, evenly spread."""
    train = {
        **candidate.train,
        "learning_rate": candidate.learning_rate,
        "max_steps": steps,
        "evaluate_every": math.ceil(steps / evaluations),
        "seed": seed,
    }
    base = settings.base
    return base.model_copy(
        update={
            "method": dict(candidate.method),
            "train": type(base.train).model_validate(train),
            "out": folder,
            "name": folder.name,
        }
    )


def slug(text: str) -> str:
    """A word for a folder's name: letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


def families(candidates: Sequence[Candidate]) -> list[str]:
    """The methods' names, each once."""
    return list(dict.fromkeys(one.family for one in candidates))
