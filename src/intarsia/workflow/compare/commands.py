"""The command that makes a run again, with every setting that is not a default."""

import dataclasses
import json
import shlex
from collections.abc import Mapping
from typing import Any

from intarsia.methods import METHODS, method_to_dict
from intarsia.workflow.sections import RunSettings

_FLAGS = {
    "data.data": "--data",
    "data.train": "--train",
    "data.validation": "--validation",
    "data.test": "--test",
    "data.text_columns": "--text-columns",
    "data.label_column": "--label-column",
    "data.kind": "--kind",
    "data.template": "--template",
    "train.epochs": "--epochs",
    "train.max_steps": "--max-steps",
    "train.learning_rate": "--lr",
    "train.batch_size": "--batch-size",
    "train.seed": "--seed",
    "dtype": "--dtype",
    "device": "--device",
}
_SAID = ("backbone", "method.name", "out", "name")


def train_command(run: Mapping[str, Any], out: str) -> str:
    """`intarsia train ...` for settings as `run.json` has them under `run`, into another folder."""
    settings = RunSettings.model_validate(run)
    words = ["intarsia", "train", "--backbone", settings.backbone, "--method", str(settings.method["name"])]
    for key, value in _unlike_defaults(settings).items():
        if key in _SAID:
            continue
        if key in _FLAGS:
            words += [_FLAGS[key], ",".join(value) if isinstance(value, list) else str(value)]
        else:
            words += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
    return shlex.join([*words, "--out", out])


def _unlike_defaults(settings: RunSettings) -> dict[str, Any]:
    """Dotted keys and JSON values."""
    method = METHODS[settings.method["name"]]
    plain = RunSettings(backbone="", data=type(settings.data)(), method=_defaults(method), out=settings.out)
    mine, theirs = _flat(settings.model_dump(mode="json")), _flat(plain.model_dump(mode="json"))
    return {key: value for key, value in mine.items() if value != theirs.get(key)}


def _defaults(method: type[Any]) -> dict[str, Any]:
    """A method's own; nothing where it has fields without a default."""
    required = any(
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        for field in dataclasses.fields(method)
    )
    return {} if required else method_to_dict(method())


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Sections as dotted keys, one level deep: deeper values are said whole."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and not above:
            found |= _flat(value, f"{key}.")
        else:
            found[above + key] = value
    return found
