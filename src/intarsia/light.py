"""What a bank keeps of a task besides its tensors, at the cost of as few bytes as a thousand prompts can bear."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from torch import nn

from intarsia.errors import TaskError
from intarsia.heads import FrozenHead
from intarsia.task import Task

_UNUSED = {
    name: MappingProxyType({}) if isinstance(value, dict) else frozenset() if isinstance(value, set) else value
    for name, value in vars(nn.Module()).items()
    if name not in ("training", "_modules")
}
"""What torch gives each module for hooks, buffers and own parameters: about 2 KB, and a prompt has 30. These cannot be filled."""
_SHARED = ("method", "head", "sites", "words", "backbone_info")
"""Of a task; nobody changes these."""


class LightTask(Task):
    """What is known of a stored task besides its deltas' tensors, which are the bank's; its head is a `FrozenHead`.

    A thousand of them cost little: what torch gives each module is there once for all, and what tasks of a form have in common,
    once for them.
    """

    training = False

    def __init__(self, task: Task, share: Callable[[str, Any], Any], deltas: nn.ModuleDict) -> None:
        """share: gives for a name and a value an equal value that is there already. deltas: without tensors."""
        known = vars(self)
        for name, value in facts(task).items():  # one by one, as Python then keeps the names once for all
            known[name] = share(name, value) if name in _SHARED else value
        known["_modules"] = share("_modules", {"deltas": deltas})
        module = task.head_module
        known["head_module"] = None if module is None else FrozenHead(self.head or module.head, module)

    def trained_parameters(self) -> int:
        """How many numbers were trained, the head's included."""
        head: Any = self.head_module
        return super().trained_parameters() + (0 if head is None else head.weight.numel() + head.bias.numel())

    def state_dict(self, *_args: Any, **_more: Any) -> Any:
        """Not here: TaskError."""
        raise TaskError(held(self.name))

    load_state_dict = __reduce__ = __deepcopy__ = state_dict  # type: ignore[assignment]

    def requires_grad_(self, requires_grad: bool = True) -> LightTask:
        """It takes none."""
        if requires_grad:
            raise TaskError(held(self.name))
        return self

    def train(self, mode: bool = True) -> LightTask:
        """It only answers; what it shares with others stays as it is."""
        return self

    def _apply(self, *_args: Any, **_more: Any) -> LightTask:
        return self  # `to`, `double` and the like: the bank decides


for _name, _value in _UNUSED.items():
    setattr(LightTask, _name, _value)


def held(name: str) -> str:
    """What to do about a stored task's tensors."""
    return (
        f"the tensors of task {name!r} are in a bank's memory; bank.evict({name!r}) gives the task with them, to save, copy or "
        "train it further"
    )


def facts(task: Task) -> dict[str, Any]:
    """What a task has besides its modules."""
    return {
        k: v for k, v in vars(task).items() if k not in _UNUSED and k not in ("training", "_modules", "head_module")
    }
