"""A bank as its hooks know it: they do not keep it, and go with it. Cells of notebooks that make banks are run again and again."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from torch import Tensor

from intarsia.backbone.attention import Prefix
from intarsia.backbone.entrance import Prompts
from intarsia.backbone.hooks import Hooks
from intarsia.ops import Before, Own, Summed
from intarsia.routing import PLAIN, Route
from intarsia.sites import Role, Site
from intarsia.turns import Turns

if TYPE_CHECKING:
    from intarsia.residents import Residents


class Reach:
    """The way from a hook to the route that its bank has for the model's calls now."""

    def __init__(self, bank: Residents, hooks: dict[str, tuple[Hooks, int]]) -> None:
        """hooks: all that the bank will ever have."""
        self.backbone, self._bank = bank.backbone, weakref.ref(bank)
        weakref.finalize(bank, _take_off, bank.backbone.turns, hooks).atexit = False

    @property
    def route(self) -> Route:
        """Of the model's calls now."""
        bank = self._bank()
        return PLAIN if bank is None else bank.current

    def hook(self, site: Site) -> Hooks:
        """Lets the routes in at a site."""
        key, device = site.key, self.backbone.device

        def project(x: Tensor, y: Tensor) -> Tensor:
            return self.route.project(key, x, y)

        def norm(x: Tensor | Summed, own: Own) -> Tensor | None:
            return self.route.norm(key, x, own)

        def replace() -> Tensor | None:
            return self.route.replacement(key)

        def extend(rows: int) -> list[Prefix] | Before | None:
            return self.route.prefix(key, rows)

        def enter(rows: int) -> Prompts | None:
            return self.route.prompts(key, rows, device)

        changes = {Role.WEIGHT: replace, Role.KV: extend, Role.EMBED: enter, Role.EMBED_OUT: enter}
        whole = self.backbone.hook_norm(site, norm) if site.role is Role.NORM else None
        hooks = whole or self.backbone.hook(site, changes.get(site.role, project))
        self.backbone.hooked.add(hooks)
        return hooks


def at_work(bank: Residents, route: Route) -> list[tuple[Residents, Route]]:
    """The model's calls are this bank's from now on, and a task that is active in another has no part in them. Returns what was."""
    active: Residents | None = bank.backbone.turns.active
    before = [(one, one.current) for one in (active, bank) if one is not None]
    for one, _ in before:
        one.current = PLAIN
    bank.current = route
    return before


def at_rest(bank: Residents) -> None:
    """The model's calls are its own again."""
    for one in (bank, bank.backbone.turns.active or bank):
        one.current = one.default


def _take_off(turns: Turns, hooks: dict[str, tuple[Hooks, int]]) -> None:
    def remove() -> None:
        for own, _ in hooks.values():
            own.remove()

    turns.when_free(remove)  # not in the midst of a call that goes through them
