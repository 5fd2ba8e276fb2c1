"""`intarsia compare`: which method for a task, at what cost. Names are loaded at first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intarsia.workflow.compare.running import compare
    from intarsia.workflow.compare.settings import CompareSettings, resolve
    from intarsia.workflow.compare.summary import Summary

_HOME_OF = {"CompareSettings": "settings", "Summary": "summary", "compare": "running", "resolve": "settings"}

__all__ = ["CompareSettings", "Summary", "compare", "resolve"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
