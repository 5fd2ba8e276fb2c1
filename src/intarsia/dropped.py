"""A bank that nobody has any more takes its hooks along: a cell of a notebook that makes one is run again and again."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from intarsia.backbone.hooks import Hooks
from intarsia.routing import PLAIN, Route
from intarsia.turns import Turns

if TYPE_CHECKING:
    from intarsia.residents import Residents


class Reach:
    """A bank as its hooks know it: they do not keep it, and are taken off with it."""

    def __init__(self, bank: Residents, hooks: dict[str, tuple[Hooks, int]]) -> None:
        """hooks: all that it will ever have."""
        self._bank = weakref.ref(bank)
        self.kept: Residents | None = None
        """The bank itself while a task is active in it: the model's own calls go through that task, whoever has the bank."""
        weakref.finalize(bank, _take_off, bank.backbone.turns, hooks).atexit = False

    @property
    def route(self) -> Route:
        """Of the model's calls now."""
        bank = self._bank()
        return PLAIN if bank is None else bank.current


def _take_off(turns: Turns, hooks: dict[str, tuple[Hooks, int]]) -> None:
    def remove() -> None:
        for own, _ in hooks.values():
            own.remove()

    turns.when_free(remove)  # not in the midst of a call that goes through them
