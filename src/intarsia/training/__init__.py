"""Training a task: settings, the loop, evaluation, and what a run writes. It knows batches, but no data format.

Names are loaded at first use, so that `import intarsia.training` costs nothing; torch, pydantic and rich come with them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intarsia.training.curve import draw_run
    from intarsia.training.evaluation import Scores, evaluate, predict
    from intarsia.training.generating import Writing, validation_metric
    from intarsia.training.loggers import LOGGERS, Logger, open_logger
    from intarsia.training.loop import Entry, FitResult, fit, fit_pack
    from intarsia.training.metrics import compute_metrics, default_metric, higher_is_better, metric_names
    from intarsia.training.pack import Failed
    from intarsia.training.progress import LiveReporter, PlainReporter, Reporter, SilentReporter, open_reporter
    from intarsia.training.settings import TrainSettings
    from intarsia.training.source import BatchSource
    from intarsia.training.textmetrics import TextMetrics

_HOMES = {
    "curve": ("draw_run",),
    "evaluation": ("Scores", "evaluate", "predict"),
    "generating": ("Writing", "validation_metric"),
    "loggers": ("LOGGERS", "Logger", "open_logger"),
    "loop": ("Entry", "FitResult", "fit", "fit_pack"),
    "pack": ("Failed",),
    "metrics": ("compute_metrics", "default_metric", "higher_is_better", "metric_names"),
    "progress": ("LiveReporter", "PlainReporter", "Reporter", "SilentReporter", "open_reporter"),
    "settings": ("TrainSettings",),
    "source": ("BatchSource",),
    "textmetrics": ("TextMetrics",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "LOGGERS",
    "BatchSource",
    "Entry",
    "Failed",
    "FitResult",
    "LiveReporter",
    "Logger",
    "PlainReporter",
    "Reporter",
    "Scores",
    "SilentReporter",
    "TextMetrics",
    "TrainSettings",
    "Writing",
    "compute_metrics",
    "default_metric",
    "draw_run",
    "evaluate",
    "fit",
    "fit_pack",
    "higher_is_better",
    "metric_names",
    "open_logger",
    "open_reporter",
    "predict",
    "validation_metric",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
