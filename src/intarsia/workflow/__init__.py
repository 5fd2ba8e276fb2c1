"""What the command line and `intarsia.train(...)` call: data, backbone, task and training tied together.

Names are loaded at first use, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intarsia.workflow.api import train, train_pack
    from intarsia.workflow.doctor import Finding, examine
    from intarsia.workflow.pack import run_pack
    from intarsia.workflow.scoring import Evaluation, evaluate, predict
    from intarsia.workflow.sections import RunSettings
    from intarsia.workflow.settings import resolve
    from intarsia.workflow.trained import Trained
    from intarsia.workflow.training import run

_HOME_OF = {
    "Evaluation": "scoring",
    "Finding": "doctor",
    "RunSettings": "sections",
    "Trained": "trained",
    "evaluate": "scoring",
    "examine": "doctor",
    "predict": "scoring",
    "resolve": "settings",
    "run": "training",
    "run_pack": "pack",
    "train": "api",
    "train_pack": "api",
}

__all__ = [
    "Evaluation",
    "Finding",
    "RunSettings",
    "Trained",
    "evaluate",
    "examine",
    "predict",
    "resolve",
    "run",
    "run_pack",
    "train",
    "train_pack",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
