"""Intarsia: many small trained modules inlaid in one frozen pretrained transformer.

    import intarsia

    backbone = intarsia.Backbone.load("embedded:minilm")
    task = intarsia.Task.new("mood", backbone, intarsia.BottleneckAdapter(width=24), intarsia.Head(labels=("bad", "good")))
    bank = intarsia.TaskBank(backbone, [task])
    scores = bank(backbone.tokenizer(["fine by me"], return_tensors="pt"), tasks="mood")

Names are imported when first used: `import intarsia` itself does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "intarsia.backbone",
    "BitFit": "intarsia.methods",
    "BottleneckAdapter": "intarsia.methods",
    "Decoding": "intarsia.heads",
    "FullFineTuning": "intarsia.methods",
    "Head": "intarsia.heads",
    "HeadOnly": "intarsia.methods",
    "LayerNormTuning": "intarsia.methods",
    "LoRA": "intarsia.methods",
    "PTuning": "intarsia.methods",
    "PTuningV2": "intarsia.methods",
    "Prediction": "intarsia.rows",
    "PrefixTuning": "intarsia.methods",
    "PromptTuning": "intarsia.methods",
    "Task": "intarsia.task",
    "TaskBank": "intarsia.bank",
    "TopLayers": "intarsia.methods",
    "IntarsiaError": "intarsia.errors",
    "evaluate": "intarsia.workflow",
    "predict": "intarsia.workflow",
    "train": "intarsia.workflow",
    "train_pack": "intarsia.workflow",
}

if TYPE_CHECKING:
    from intarsia.backbone import Backbone
    from intarsia.bank import TaskBank
    from intarsia.errors import IntarsiaError
    from intarsia.heads import Decoding, Head
    from intarsia.methods import (
        BitFit,
        BottleneckAdapter,
        FullFineTuning,
        HeadOnly,
        LayerNormTuning,
        LoRA,
        PrefixTuning,
        PromptTuning,
        PTuning,
        PTuningV2,
        TopLayers,
    )
    from intarsia.rows import Prediction
    from intarsia.task import Task
    from intarsia.workflow import evaluate, predict, train, train_pack

__all__ = [
    "Backbone",
    "BitFit",
    "BottleneckAdapter",
    "Decoding",
    "FullFineTuning",
    "Head",
    "HeadOnly",
    "IntarsiaError",
    "LayerNormTuning",
    "LoRA",
    "PTuning",
    "PTuningV2",
    "Prediction",
    "PrefixTuning",
    "PromptTuning",
    "Task",
    "TaskBank",
    "TopLayers",
    "evaluate",
    "predict",
    "train",
    "train_pack",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'intarsia' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
