"""The routing of a GPU's rows: at each site one launch for each form of task, which finds every row's own tensors by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from intarsia.ops import NOBODY, Before, Own, Rows, Summed, made, offsets_from, whole_norms
from intarsia.routing import Resident, Route, Run
from intarsia.storage import Form, Stored


class AddressedRoute(Route):
    """Rows whose tasks are read where they lie. Only prompts go by runs."""

    def __init__(self, runs: Sequence[Run], rows: int, forms: Sequence[Form], where: Rows, **more: bool) -> None:
        """runs, rows and more: as a Route has them; forms: by the numbers that `where` gives them."""
        super().__init__(runs, rows, **more)
        self.forms, self.where = forms, where
        self._before: dict[str, Before | None] = {}
        self._found: dict[str, list[Any]] = {}

    def project(self, key: str, x: Tensor, y: Tensor) -> Tensor:
        """y', written into y."""
        self._counts(y.shape[0])
        for delta in self._found_at(key):
            y = delta.change_(x, y)
        return y

    def norm(self, key: str, x: Tensor | Summed, own: Own) -> Tensor | None:
        """y', or None."""
        x = made(x)
        self._counts(x.shape[0])
        changes = [(delta.gain, delta.bias) for delta in self._found_at(key)]
        return whole_norms(x, own, changes) if changes else None

    def _found_at(self, key: str) -> list[Any]:
        if key not in self._found:
            found = [form.delta_at(key, self.where, number) for number, form in enumerate(self.forms)]
            self._found[key] = [delta for delta in found if delta is not None]
        return self._found[key]

    def prefix(self, key: str, rows: int) -> Before | None:
        """Where the keys and values lie. Made once: a graph cannot, and needs it as long as it runs."""
        self._counts(rows)
        if key not in self._before:
            table = [_prefix(form, key) for form in self.forms]
            found = any(length for _, _, length in table)
            sent = torch.tensor(table).to(self.where.anchor.device, non_blocking=True) if found else None
            self._before[key] = None if sent is None else Before(self.where, sent)
        return self._before[key]

    def replacement(self, key: str) -> None:
        """Tasks that replace weights are no rows of others."""


def _prefix(form: Form, key: str) -> tuple[int, int, int]:
    shell: Any = form.shells.get(key)
    return (0, 0, 0) if shell is None else (form.place(key, "key"), form.place(key, "value"), shell.length)


def readable(rows: Sequence[Resident | None]) -> bool:
    """Whether the rows' tasks are stored, and kernels know all that they do."""
    return all(row is None or (isinstance(row, Stored) and row.form.addressed and not row.form.behind) for row in rows)


def addressed(route: Route, rows: Sequence[Resident | None]) -> Route:
    """The route of these rows, which are `readable`, for kernels."""
    flats = [row.flat if isinstance(row, Stored) else None for row in rows]
    anchor = next((flat for flat in flats if flat is not None), None)
    if anchor is None or route.rows == 0:
        return route
    forms = list(dict.fromkeys(row.form for row in rows if isinstance(row, Stored)))
    number = {form: index for index, form in enumerate(forms)}
    owners = [number[row.form] if isinstance(row, Stored) else NOBODY for row in rows]
    # Not by torch.tensor(device=...), which waits for all that the GPU was given before.
    both = torch.tensor([[*offsets_from(anchor, flats), 0], [*owners, NOBODY]]).to(anchor.device, non_blocking=True)
    where = Rows(anchor, both[0], both[1], flats=flats, sorts=len(forms))
    return AddressedRoute(route.runs, route.rows, forms, where, entered=route.entered, beams=route.beams)
