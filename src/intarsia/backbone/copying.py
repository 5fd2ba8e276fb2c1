"""Copies of a backbone. The hooks of banks are functions that ask the bank they are of; on a copy they would ask the wrong one."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from intarsia.backbone.hooks import Hooks
from intarsia.errors import BackboneError

if TYPE_CHECKING:
    from torch import nn

    from intarsia.backbone.backbone import Backbone

_ITSELF = "_intarsia_itself"
"""Of a model: its id, which a copy of it has too."""


def hooked_on(model: nn.Module) -> WeakSet[Hooks]:
    """For a new backbone's banks, to keep their hooks in."""
    model.__dict__[_ITSELF] = id(model)
    return WeakSet()


def without_tasks(backbone: Backbone, memo: dict[int, Any]) -> Backbone:
    """A deep copy on which no bank has anything; the backbone keeps what is on it."""
    with backbone.turns:
        memo[id(backbone)] = made = object.__new__(type(backbone))
        own = {name: value for name, value in vars(backbone).items() if name != "hooked"}
        vars(made).update(copy.deepcopy(own, memo))
        made.hooked = hooked_on(made.model)
        for hooks in list(backbone.hooked):
            copy.deepcopy(hooks, memo).remove()  # the copy's own, as `memo` knows its modules
    return made


def check_copy(model: nn.Module) -> None:
    """BackboneError for a copy of a model that was made with tasks on it: it would answer by them, beside its own."""
    if model.__dict__.get(_ITSELF, id(model)) == id(model):
        return
    for module in model.modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values(), module.__dict__.get("forward")]
        if any((getattr(hook, "__module__", None) or "").startswith("intarsia.") for hook in hooks):
            raise BackboneError(
                "this model is a copy of one that had the tasks of a bank on it, which would answer here too; copy the backbone "
                "instead, copy.deepcopy(backbone), or detach() the bank before the model is copied"
            )
