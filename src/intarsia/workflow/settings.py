"""The settings of one run: strict, in one place, from a run file, the command line and `--set`, in that order.

A run file in full (every key but backbone, data, method and out has a default):

    backbone: embedded:minilm
    data: {train: train.csv, test: test.csv, text_columns: [sentence1, sentence2], label_column: label}
    method: {name: adapter, width: 48}
    head: {pooling: mean, dropout: 0.1}
    train: {epochs: 3, learning_rate: 1e-3, batch_size: 16, seed: 0}
    out: runs/mrpc

Generation of text:

    backbone: embedded:smollm2
    data: {train: train.csv, test: test.csv, kind: generation, template: "name: {mr}\\n", label_column: ref}
    method: {name: prefix, length: 10}
    train: {epochs: 5, target_length: 96}
    generation: {beams: 5, max_new_tokens: 64, length_penalty: 0.9, lowercase: true}
    out: runs/e2e

Several runs over one backbone, trained as a pack; each says what it has otherwise, and its folder is `out`/`name`:

    backbone: embedded:minilm
    data: embedded:questions
    out: runs/sweep
    runs:
      - {name: small, method: {name: adapter, width: 8}}
      - {name: lora, method: lora, train: {learning_rate: 1e-3, seed: 1}}
"""

import json
import operator
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from intarsia.errors import ConfigError, nearest
from intarsia.workflow.runfile import one_line, parse_yaml, read_run_file
from intarsia.workflow.sections import FILES, SECTIONS, RunSettings

HINTS = {
    "backbone": "--backbone embedded:minilm, a model folder, or a hub name",
    "data": "--data embedded:NAME or hub:NAME, or --train FILE",
    "method": "--method adapter",
    "out": "--out DIR",
}

ELSEWHERE = {
    "adam_epsilon": "eps",
    "do_sample": "sample",
    "early_stopping_patience": "patience",
    "eval_steps": "evaluate_every",
    "gradient_accumulation_steps": "accumulate",
    "gradient_clip_val": "clip",
    "lora_alpha": "alpha",
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "max_grad_norm": "clip",
    "max_seq_length": "max_length",
    "metric_for_best_model": "metric",
    "model_name_or_path": "backbone",
    "num_beams": "beams",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "num_virtual_tokens": "length",
    "optim": "optimizer",
    "output_dir": "out",
    "per_device_train_batch_size": "batch_size",
    "r": "rank",
    "save_steps": "checkpoint_every",
    "target_modules": "targets",
    "train_batch_size": "batch_size",
    "warmup_ratio": "warmup",
}
"""What other trainers call our settings."""


def resolve(run_file: Path | None, flags: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunSettings:
    """One run's settings: the file, then command-line flags over it, then `--set KEY=VALUE` over both.

    flags: dotted key -> value, e.g. {"train.epochs": 1}; None means not given. Raises ConfigError naming the full key.
    """
    return _apply(_tree(read_run_file(run_file) if run_file else {}), flags, overrides)


def resolve_pack(run_file: Path, flags: Mapping[str, Any], overrides: Sequence[str] = ()) -> list[RunSettings]:
    """The settings of each of a file's `runs`; flags and overrides, as for `resolve`, hold for all. ConfigError names the run."""
    shared = read_run_file(run_file)
    runs = shared.pop("runs")
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise ConfigError("runs must be a list of mappings, each with what that run has otherwise, such as - {name: a}")
    flags = dict(flags)
    folder = flags.pop("out", None) or shared.pop("out", None)
    found = []
    for number, own in enumerate(runs, 1):
        name = str(own.get("name") or f"run-{number}")
        if "out" not in own and not folder:
            raise ConfigError(f"out is missing; give --out DIR for the whole pack, or run {name!r} its own `out`")
        tree = laid_over(_tree(shared), _tree({"name": name, "out": Path(folder) / name if folder else None} | own))
        try:
            found.append(_apply(tree, flags, overrides))
        except ConfigError as error:
            raise ConfigError(f"run {name!r}: {error}") from error
    return found


def is_pack(run_file: Path | None) -> bool:
    """Whether a run file has several runs."""
    return run_file is not None and "runs" in read_run_file(run_file)


def laid_over(shared: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """One run's own keys over those of all; another method, or another source of data, replaces the shared one."""
    for section, value in own.items():
        if isinstance(value, Mapping) and isinstance(shared.get(section), dict):
            for inner, one in sorted(value.items(), key=lambda item: item[0] not in ("name", "data")):
                _put(shared, f"{section}.{inner}", one)
        else:
            shared[section] = value
    return shared


def _apply(tree: dict[str, Any], flags: Mapping[str, Any], overrides: Sequence[str]) -> RunSettings:
    given = {key: value for key, value in flags.items() if value is not None}
    if "data.data" in given and (files := [name for name in FILES if f"data.{name}" in given]):
        raise ConfigError(f"--data and --{files[0]} both say where the data is; give one of them")
    for key, value in {**given, **dict(map(parse_override, overrides))}.items():
        _put(tree, key, value)
    return from_tree(tree)


def resume_settings(run_file: Path | None, flags: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunSettings:
    """As `resolve`; without a run file, what run.json in `out` says takes its place: `--out DIR --resume` is enough."""
    if run_file is not None or flags.get("out") is None:
        return resolve(run_file, flags, overrides)
    recorded = Path(flags["out"]) / "run.json"
    if not recorded.is_file():
        raise ConfigError(f"{flags['out']} holds no run to go on with (no run.json); leave --resume out to start one")
    return _apply(_tree(_recorded(recorded)), flags, overrides)


def from_tree(tree: Mapping[str, Any]) -> RunSettings:
    """Validates nested settings. ConfigError, in one line, on the first key that is unknown, missing or wrong."""
    tree = {key: _plain(value) for key, value in _tree(tree).items()}
    _refuse_unknown(tree)
    if isinstance(tree.get("method"), Mapping):
        tree["method"] = _method(tree["method"])
    try:
        settings = RunSettings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_first(error)) from error
    source = settings.data
    if source.data and any(getattr(source, name) for name in FILES):
        raise ConfigError(
            "data.data (embedded:NAME, hub:NAME) and data.train/validation/test (files) are both given; keep one"
        )
    return settings


def parse_override(text: str) -> tuple[str, Any]:
    """`train.epochs=5` -> ("train.epochs", 5). The value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set expects KEY=VALUE such as method.width=48, got {one_line(text)!r}")
    try:
        return key.strip(), parse_yaml(value)
    except ConfigError as error:
        raise ConfigError(f"--set {key.strip()}: {error}") from error


def _recorded(path: Path) -> dict[str, Any]:
    """The settings in a run.json that this program wrote."""
    try:
        settings = json.loads(path.read_text("utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} holds no settings of a run ({one_line(str(error), 80)}); give them again") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings of a run; give them again")
    return settings


def _tree(content: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the short forms written out: `method: lora` and `data: embedded:questions`."""
    tree = {key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    for key, inner in (("method", "name"), ("data", "data")):
        if isinstance(tree.get(key), str):
            tree[key] = {inner: tree[key]}
    return {key: value for key, value in tree.items() if not (value is None and key in SECTIONS)}


def _plain(value: Any) -> Any:
    """The value with numpy's numbers as Python's: they mean the same, and JSON has only the latter."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Real) and type(value) not in (bool, int, float):
        return operator.index(value) if isinstance(value, Integral) else float(value)
    return value


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets one dotted key. A new method, or a new source of data, replaces the old one with what belonged to it."""
    section, _, inner = key.partition(".")
    if not inner:
        tree.update(_tree({section: value}))
        return
    if section not in SECTIONS and section != "method":
        if section in RunSettings.model_fields:
            raise ConfigError(f"unknown key {key!r}: {section!r} is a single value")
        raise ConfigError(_unknown(key, [*RunSettings.model_fields]))
    current = tree.setdefault(section, {})
    if not isinstance(current, dict):
        raise ConfigError(f"{section}: expected `key: value` lines, got {one_line(repr(current), 60)}")
    if key == "method.name" and current.get("name") != value:
        current.clear()
    if key == "data.data":
        for name in (*FILES, "text_columns", "label_column", "template", "label_words"):
            current.pop(name, None)
    if section == "data" and inner in FILES:
        current.pop("data", None)
    current[inner] = value


def _refuse_unknown(tree: Mapping[str, Any]) -> None:
    for key, value in tree.items():
        if key not in RunSettings.model_fields:
            raise ConfigError(_unknown(str(key), [*RunSettings.model_fields]))
        if key in SECTIONS and isinstance(value, Mapping):
            known = [*SECTIONS[key].model_fields]
            for inner in value:
                if inner not in known:
                    raise ConfigError(_unknown(f"{key}.{inner}", [f"{key}.{name}" for name in known]))


def _method(values: Mapping[str, Any]) -> dict[str, Any]:
    """The method's mapping with every field written out; the class itself checks types and ranges."""
    import dataclasses

    from intarsia.methods import METHODS, method_from_dict, method_to_dict

    name = values.get("name")
    if name is None:
        raise ConfigError(f"method.name is missing; give --method, one of {', '.join(METHODS)}")
    if not isinstance(name, str):
        raise ConfigError(f"method.name must be one of {', '.join(METHODS)}, got {one_line(repr(name), 60)}")
    if name in METHODS:
        known = ["name", *(field.name for field in dataclasses.fields(METHODS[name]))]
        for key in values:
            if key not in known:
                raise ConfigError(_unknown(f"method.{key}", [f"method.{field}" for field in known]))
    return method_to_dict(method_from_dict(values))


def _unknown(key: str, known: Sequence[str]) -> str:
    return f"unknown key {one_line(key, 60)!r}{suggested(key, known) or '; known keys: ' + ', '.join(known)}"


def suggested(key: str, known: Sequence[str]) -> str:
    """As `nearest`, but a name that another trainer has for one of the known keys is answered with that one."""
    section, dot, name = key.rpartition(".")
    ours = f"{section}{dot}{ELSEWHERE.get(name)}"
    return f"; here it is {ours!r}" if ours in known else nearest(key, list(known))


def _first(error: ValidationError) -> str:
    """The first of pydantic's findings as one line with the full key."""
    found = error.errors(include_url=False)[0]
    loc = ".".join(str(part) for part in found["loc"])
    if found["type"] == "missing":
        hint = HINTS.get(loc)
        return f"{loc} is missing" + (f"; give {hint}, or the key {loc!r} in the run file" if hint else "")
    message = one_line(found["msg"].removeprefix("Value error, "))
    got = one_line(repr(found["input"]), 60)
    message = message if got in message else f"{message}, got {got}"
    return f"{loc}: {message}" if loc else message
