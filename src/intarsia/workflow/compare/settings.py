"""The settings of a comparison: those of a run, and which methods, how many seeds, how long.

A file in full (every key but backbone, data and out has a default):

    backbone: embedded:minilm
    data: embedded:questions
    methods:
      adapter: {sizes: [8, 48], learning_rates: [5e-4, 1e-3], inits: [1e-2, 1e-4]}
      prompt: {sizes: [20], inits: [vocabulary, labels, {init: text, init_text: "what is asked for"}]}
      lora:                                   # as `intarsia recipes` says
      full: {epochs: 3}
    seeds: 3
    budget: 30m
    train: {batch_size: 32}                   # for every method, over its recipe
    out: runs/comparison
"""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from intarsia.errors import ConfigError, nearest
from intarsia.methods import METHODS
from intarsia.training.settings import Count, Positive
from intarsia.workflow.runfile import one_line, read_run_file
from intarsia.workflow.sections import FILES, RunSettings
from intarsia.workflow.settings import from_tree, parse_override, suggested

DEFAULT_METHODS = ("adapter", "lora", "prefix", "ptuning-v2", "prompt", "full")
OWN = ("methods", "seeds", "budget")
SHARED = ("backbone", "data", "head", "train", "generation", "out", "dtype", "device", "threads")
_TIME = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(s|m|h)\s*$")
_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds_of(text: Any) -> Any:
    """`30m` -> 1800.0; also s and h."""
    found = _TIME.match(text) if isinstance(text, str) else None
    if found is None:
        if isinstance(text, int | float) and not isinstance(text, bool):
            return float(text)
        raise ValueError("expected a time such as 30m, 2h or 90s")
    return float(found[1]) * _UNITS[found[2]]


class Grid(BaseModel, extra="forbid", frozen=True):
    """What is tried of one method. None: as its recipe says; of each list the last is given up first."""

    sizes: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    inits: Annotated[tuple[str | float | dict[str, Any], ...], Field(min_length=1)] | None = None
    """Values of the field by which the method starts (adapter: init_std), or mappings of such fields."""
    epochs: Count | None = None
    settings: dict[str, Any] = {}
    """Other fields of the method, the same for all."""


def _grids(value: Any) -> Any:
    """`a,b`, a list or a mapping of methods, as the mapping."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        value = {name: {} for name in value}
    return {name: grid or {} for name, grid in value.items()} if isinstance(value, Mapping) else value


class Own(BaseModel, extra="forbid", frozen=True):
    """What a comparison has beside the settings of a run."""

    methods: Annotated[dict[str, Grid], BeforeValidator(_grids), Field(min_length=1)] = {
        name: Grid() for name in DEFAULT_METHODS
    }
    seeds: Count = 3
    """Fresh seeds of each method's best settings."""
    budget: Annotated[Positive, BeforeValidator(seconds_of)] | None = None
    """Seconds in all. None: as long as it takes."""


class CompareSettings(Own, frozen=True):
    """Everything that decides a comparison."""

    base: RunSettings
    """What all its runs share; its method, name and seed are of no account."""
    given: frozenset[str] = frozenset()
    """The keys of the section `train` that were written down: they go over a recipe's own."""

    def plain(self) -> dict[str, Any]:
        """As JSON values, in the shape of a file; `from_mapping` gives the same settings back."""
        own = self.model_dump(mode="json", exclude={"base", "given"})
        base = self.base.model_dump(mode="json", include=set(SHARED))
        base["train"] = {key: base["train"][key] for key in sorted(self.given)}
        return {**base, **own}


def resolve(file: Path | None, flags: Mapping[str, Any], overrides: Sequence[str] = ()) -> CompareSettings:
    """The file, then command-line flags (dotted keys; None: not given) over it, then `--set KEY=VALUE` over both."""
    tree = _spelt_out(read_run_file(file) if file else {})
    given = {key: value for key, value in flags.items() if value is not None}
    files = [name for name in FILES if f"data.{name}" in given]
    if "data.data" in given and files:
        raise ConfigError(f"--data and --{files[0]} both say where the data is; give one of them")
    if "data.data" in given:
        tree["data"] = {}
    elif files and isinstance(tree.get("data"), dict):
        tree["data"].pop("data", None)
    for key, value in {**given, **dict(map(parse_override, overrides))}.items():
        _put(tree, key, value)
    return from_mapping(tree)


def from_mapping(tree: Mapping[str, Any]) -> CompareSettings:
    """Validates nested settings. ConfigError, in one line, on the first key that is unknown, missing or wrong."""
    tree, known = _spelt_out(tree), (*OWN, *SHARED)
    if unknown := [str(key) for key in tree if key not in known]:
        near = suggested(unknown[0], known) or f"; known keys: {', '.join(known)}"
        raise ConfigError(f"unknown key {one_line(unknown[0], 60)!r}{near}")
    try:
        own = Own.model_validate({key: tree[key] for key in OWN if tree.get(key) is not None})
    except ValidationError as error:
        raise ConfigError(_first(error)) from error
    for name in own.methods:
        if name not in METHODS:
            raise ConfigError(
                f"methods: unknown method {name!r}; known: {', '.join(METHODS)}{nearest(name, [*METHODS])}"
            )
    if tree.get("out") is None:
        raise ConfigError("out is missing; give --out DIR")
    base = from_tree({**{key: tree[key] for key in SHARED if key in tree}, "method": "head"})
    for name in ("learning_rate", "seed", "max_steps", "evaluate_every"):
        if name in base.train.model_fields_set:
            hint = {"learning_rate": "; give learning_rates of a method", "seed": "; give seeds"}.get(name, "")
            raise ConfigError(f"train.{name} is what a comparison decides; leave it out{hint}")
    return CompareSettings(**dict(own), base=base, given=frozenset(base.train.model_fields_set))


def _spelt_out(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with mappings of its own, and `data: embedded:questions` written out."""
    copied = copy.deepcopy(dict(tree))
    if isinstance(copied.get("data"), str):
        copied["data"] = {"data": copied["data"]}
    return {key: value for key, value in copied.items() if value is not None}


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets one dotted key."""
    *above, last = key.split(".")
    node = tree
    for depth, part in enumerate(above):
        if depth == 0 and part == "methods":
            node["methods"] = _grids(node.get("methods", {}))
        inner = node.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}: {part!r} is a single value")
        node = inner
    node[last] = value


def _first(error: ValidationError) -> str:
    """The first of pydantic's findings as one line with the full key."""
    found = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in found["loc"])
    what = one_line(found["msg"].removeprefix("Value error, "))
    if found["type"] == "extra_forbidden":
        return f"unknown key {where!r}; known here: {', '.join(Grid.model_fields)}"
    return f"{where}: {what}, got {one_line(repr(found['input']), 60)}"


def resume(file: Path | None, flags: Mapping[str, Any], overrides: Sequence[str] = ()) -> CompareSettings:
    """As `resolve`; without a file, what the ledger in `out` says takes its place, and --budget may give more time."""
    if file is not None or flags.get("out") is None:
        return resolve(file, flags, overrides)
    from intarsia.workflow.compare.ledger import read

    start = next((event for event in read(Path(flags["out"])) if event["event"] == "start"), None)
    if start is None:
        raise ConfigError(f"the comparison in {flags['out']} was stopped before it began; give its settings again")
    given = {key: value for key, value in flags.items() if value is not None}
    tree = {**start["settings"], "out": given.pop("out")}
    for key, value in {**given, **dict(map(parse_override, overrides))}.items():
        _put(tree, key, value)
    return from_mapping(tree)
