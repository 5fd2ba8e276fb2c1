"""The methods, one file per paper, and the names by which files and commands call them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

from intarsia.errors import ConfigError, nearest
from intarsia.methods.adapter import BottleneckAdapter
from intarsia.methods.base import Delta, EmbeddingDelta, KeyValueDelta, Method, ProjectionDelta, WeightDelta
from intarsia.methods.lora import LoRA
from intarsia.methods.norms import BitFit, LayerNormTuning
from intarsia.methods.prefix import PrefixTuning
from intarsia.methods.prompt import PromptTuning
from intarsia.methods.ptuning import PTuning
from intarsia.methods.ptuning_v2 import PTuningV2
from intarsia.methods.weights import FullFineTuning, HeadOnly, TopLayers

METHODS: dict[str, type[Any]] = {
    cls.name: cls
    for cls in (
        BottleneckAdapter,
        LoRA,
        PrefixTuning,
        PTuningV2,
        PromptTuning,
        PTuning,
        FullFineTuning,
        TopLayers,
        LayerNormTuning,
        BitFit,
        HeadOnly,
    )
}

LARGEST = 2**31
"""No module has so many rows, and torch has no words for tensors that its counters do not hold."""


def method_to_dict(method: Method) -> dict[str, Any]:
    """`{"name": "adapter", "width": 48, ...}`, plain json values, every field written out."""
    fields = dataclasses.asdict(method)  # type: ignore[call-overload]
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
    return {"name": method.name, **plain}


def method_from_dict(values: Mapping[str, Any]) -> Method:
    """The inverse of `method_to_dict`; missing fields take their defaults, unknown names and wrong types are ConfigErrors."""
    from pydantic import ValidationError

    name = values.get("name")
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; known: {', '.join(METHODS)}{nearest(str(name), list(METHODS))}")
    cls: Any = METHODS[name]
    given = {key: value for key, value in values.items() if key != "name"}
    known = [field.name for field in dataclasses.fields(cls)]
    if unknown := [key for key in given if key not in known]:
        raise ConfigError(
            f"method {name} has no field {unknown[0]!r}; its fields: {', '.join(known) or 'none'}{nearest(str(unknown[0]), known)}"
        )
    try:
        made = _checker(cls).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1])
        raise ConfigError(f"method {name}: {where}: {first['msg']}, got {first['input']!r}") from None
    for key, value in given.items():  # true is no number, whatever Python says
        if isinstance(value, bool) and not isinstance(getattr(made, key), bool):
            raise ConfigError(f"method {name}: {key}: expected a number, got {value!r}")
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise ConfigError(f"method {name}: {key}: must be below {LARGEST}, got {value}; give a smaller one")
    return made


@cache
def _checker(cls: type) -> Any:
    """Once for a class: pydantic takes milliseconds to make one, and keeps a part of each for good."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


__all__ = [
    "METHODS",
    "BitFit",
    "BottleneckAdapter",
    "Delta",
    "EmbeddingDelta",
    "FullFineTuning",
    "HeadOnly",
    "KeyValueDelta",
    "LayerNormTuning",
    "LoRA",
    "Method",
    "PTuning",
    "PTuningV2",
    "PrefixTuning",
    "ProjectionDelta",
    "PromptTuning",
    "TopLayers",
    "WeightDelta",
    "method_from_dict",
    "method_to_dict",
]
