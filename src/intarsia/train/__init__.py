"""Training a task: settings, the loop, evaluation, and what a run writes. It knows batches, but no data format.

Names are loaded at first use, so that `import intarsia.train` costs nothing; torch, pydantic and rich come with them.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intarsia.train.evaluation import Scores, evaluate, predict
    from intarsia.train.loggers import LOGGERS, Logger, open_logger
    from intarsia.train.loop import FitResult, fit
    from intarsia.train.metrics import compute_metrics, default_metric, higher_is_better, metric_names
    from intarsia.train.progress import LiveReporter, PlainReporter, Reporter, SilentReporter, open_reporter
    from intarsia.train.settings import TrainSettings
    from intarsia.train.source import BatchSource

_HOMES = {
    "evaluation": ("Scores", "evaluate", "predict"),
    "loggers": ("LOGGERS", "Logger", "open_logger"),
    "loop": ("FitResult", "fit"),
    "metrics": ("compute_metrics", "default_metric", "higher_is_better", "metric_names"),
    "progress": ("LiveReporter", "PlainReporter", "Reporter", "SilentReporter", "open_reporter"),
    "settings": ("TrainSettings",),
    "source": ("BatchSource",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "LOGGERS",
    "BatchSource",
    "FitResult",
    "LiveReporter",
    "Logger",
    "PlainReporter",
    "Reporter",
    "Scores",
    "SilentReporter",
    "TrainSettings",
    "compute_metrics",
    "default_metric",
    "evaluate",
    "fit",
    "higher_is_better",
    "metric_names",
    "open_logger",
    "open_reporter",
    "predict",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Makes `intarsia.train(...)` work: once imported, this package takes the place of the function of that name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return import_module("intarsia.workflow").train(*args, **options)


sys.modules[__name__].__class__ = _Package
