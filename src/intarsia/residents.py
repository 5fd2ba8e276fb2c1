"""Which tasks a bank holds: they come, go, change places and are paged, each at the cost of its own tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from intarsia.addressed import addressed, readable
from intarsia.backbone import Backbone
from intarsia.backbone.hooks import Hooks
from intarsia.errors import ConfigError, TaskError, nearest
from intarsia.light import LightTask, held
from intarsia.modes import own_modes
from intarsia.ops import fused
from intarsia.reach import Reach, at_work
from intarsia.routing import PLAIN, Resident, Route, group_rows, pass_of, route_of, route_rows
from intarsia.rows import virtual
from intarsia.shelf import Shelf
from intarsia.storage import Form, Live, Stored
from intarsia.task import Task
from intarsia.turns import in_turn


class Residents:
    """Tasks on one backbone, the hooks that they need, and the routing of rows to them."""

    def __init__(self, backbone: Backbone, capacity: int | None) -> None:
        if not isinstance(backbone, Backbone):
            raise ConfigError(
                f"a bank needs a Backbone, got {type(backbone).__name__}; make one with Backbone.load(name) or Backbone.wrap(model)"
            )
        self.backbone = backbone
        self.tasks: dict[str, Task] = {}
        """By name. A stored task's head, labels, data and metrics are in it; its tensors are the bank's, until `evict`."""
        self.virtual: dict[str, int] = {}
        """rows.virtual of each, which is asked for at every call."""
        self.aliases: dict[str, str] = {}
        """Other names of tasks."""
        self._residents: dict[str, Resident] = {}
        self._shelf = Shelf(backbone.device, capacity)
        self._hooks: dict[str, tuple[Hooks, int]] = {}
        """By the site's key, with the number of tasks there."""
        self._stacked = backbone.device.type == "cuda"
        self._addressed = self._stacked and fused(torch.empty(0, dtype=backbone.dtype, device=backbone.device))
        self._addressed = self._addressed and backbone.attention.plain
        self.mixes = True
        """Whether tasks share passes; not where the backbone computes something for all rows together at a site (DeBERTa's position
        table, OPT's flattened feed-forward), which is found out by running it."""
        self.default = self.current = PLAIN
        """The routing of the model's own calls, and of its calls now."""
        self._active: str | None = None
        self._reach = Reach(self, self._hooks)

    @in_turn
    @own_modes()
    def add(self, task: Task, name: str | None = None) -> None:
        """Makes a task resident, under its own name or another. TaskError when the name is taken or it is another backbone's."""
        self._check(task)
        name = name or task.name
        if name in self.tasks or name in self.aliases:
            raise TaskError(f"the bank already holds a task named {name!r}; evict it first or give another name.")
        frozen = not any(parameter.requires_grad for parameter in task.parameters())
        resident = self._shelf.store(task, self.backbone.dtype) if frozen else Live(task)
        self._hook_all(task)
        if isinstance(resident, Stored):
            try:
                self._shelf.put(name, resident)
            except BaseException:  # no memory
                self._unhook_all(task)
                raise
        self._residents[name] = resident
        self.tasks[name], self.virtual[name] = resident.task, virtual(task)

    @in_turn
    def load(self, folder: str | Path, name: str | None = None) -> Task:
        """Loads a task folder into the bank's memory, under its own name or another, and returns what `tasks` holds of it."""
        task = Task.load(folder, self.backbone).requires_grad_(False)
        self.add(task, name)
        return self.tasks[name or task.name]

    @in_turn
    @own_modes()
    def evict(self, name: str) -> Task:
        """Takes a task out and returns it, with its tensors; sites that no other task uses lose their hooks."""
        resident = self._residents[self._known(name)]
        task = resident.whole() if isinstance(resident, Stored) else resident.task
        self.discard(name)
        return task

    @in_turn
    def discard(self, name: str) -> None:
        """As `evict`, and the task is gone."""
        name = self._known(name)
        if self._active == name:
            self.activate(None)
        resident = self._residents.pop(name)
        task, _ = self.tasks.pop(name), self.virtual.pop(name)
        if isinstance(resident, Stored):
            self._shelf.take(name)
        self.aliases = {alias: target for alias, target in self.aliases.items() if target != name}
        self._unhook_all(task)

    @in_turn
    def replace(self, name: str, task: Task) -> None:
        """Puts another task in a resident one's place; its aliases stay. TaskError, and nothing changed, when it does not fit."""
        name = self._known(name)
        self._check(task)
        active, aliases = self._active, {a: n for a, n in self.aliases.items() if n == name}
        old = self.evict(name)
        try:
            self.add(task, name)
        except BaseException:
            self.add(old, name)
            raise
        finally:
            self.aliases |= aliases
        if active == name:
            self.activate(name)

    def addresses(self, name: str | None) -> bool:
        """Whether kernels read this task where it lies, so that its rows need no pass of their own."""
        return readable([None if name is None else self._residents[self._known(name)]])

    def bring(self, residents: Mapping[str | None, Resident | None]) -> None:
        """These tasks to the device, as far as the bank still has them; those that it has not stay where they are."""
        self._shelf.fetch(
            name
            for name, resident in residents.items()
            if name is not None and isinstance(resident, Stored) and self._residents.get(name) is resident
        )

    @in_turn
    def alias(self, alias: str, name: str) -> None:
        """Another name for a resident task; an alias that exists is moved."""
        if alias in self.tasks:
            raise TaskError(f"the bank already holds a task named {alias!r}; choose another alias.")
        self.aliases[alias] = self._known(name)

    @in_turn
    def detach(self) -> None:
        """Takes all tasks out; the backbone's outputs are as before, to the bit."""
        for name in list(self.tasks):
            self.discard(name)

    def nbytes(self, name: str) -> int:
        """Bytes of the bank's memory for a task: 0 for one in training, which is its owner's."""
        return self._residents[self._known(name)].nbytes

    def on_device(self, name: str) -> bool:
        """Whether a task's tensors are on the device now, not paged out."""
        resident = self._residents[self._known(name)]
        return isinstance(resident, Live) or self._shelf.here(self._known(name))

    @property
    def device_bytes(self) -> int:
        """Of the stored tasks on the device."""
        return self._shelf.used

    @property
    def host_bytes(self) -> int:
        """Of the stored tasks that are paged out."""
        return self._shelf.paged

    @in_turn
    def activate(self, name: str | None) -> None:
        """The task of every row when the model itself is called, as in a user's own loop over `backbone.model`; None: none.

        It is one task of one bank: that of another bank is so no more. Banks' own calls go past it.
        """
        name, turns = None if name is None else self._known(name), self.backbone.turns
        if name is not None and turns.active not in (None, self):
            turns.active.activate(None)
        self._active = name
        self.default = self.current = PLAIN if name is None else self._alone(name)
        if name is not None or turns.active is self:
            turns.active = None if name is None else self

    def passes(self, names: Sequence[str | None]) -> list[list[int]]:
        """Row indices of each pass that a batch of these tasks takes, sorted as `route` wants them."""
        names = [None if name is None else self._known(name) for name in names]

        def place(row: int) -> tuple[int, str]:
            resident = self._residents.get(names[row] or "")
            return (0 if resident is None else id(getattr(resident, "form", resident))), names[row] or ""

        groups = group_rows(self.backbone, names, self.tasks, mixes=self.mixes)
        return [part for rows in groups for part in self._shelf.batches(sorted(rows, key=place), names)]

    def pass_of(self, name: str | None) -> str:
        """Rows of tasks with the same word here can share a pass."""
        return pass_of(self.backbone, None if name is None else self._known(name), self.tasks, mixes=self.mixes)

    def fits(self, names: Sequence[str | None]) -> bool:
        """Whether these tasks have room on the device together."""
        capacity = self._shelf.capacity
        return capacity is None or sum(self.nbytes(name) for name in set(names) if name is not None) <= capacity

    def route(self, names: Sequence[str | None], *, entered: bool = False, beams: bool = False) -> Route:
        """The routing of the rows of one pass, in the order of `passes`; to be used with `under`. It keeps the tensors that the
        tasks have now, and is good for as many calls of the model as wanted."""
        rows = self.fetched(names)
        route = route_rows(rows, stacked=self._stacked, entered=entered, beams=beams)
        by_address = self._addressed and not torch.is_grad_enabled() and readable(rows)
        return addressed(route, rows) if by_address else route

    def fetched(self, names: Sequence[str | None]) -> list[Resident | None]:
        """The tasks of the rows of one pass, with their tensors on the device."""
        names = [None if name is None else self._known(name) for name in names]
        self._shelf.fetch(name for name in names if name and isinstance(self._residents[name], Stored))
        return [None if name is None else self._residents[name] for name in names]

    def shapes(self, names: Iterable[str]) -> dict[Form, str]:
        """A task of each shape among these that kernels read where they lie, those first whose shape more have."""
        found: dict[Form, str] = {}
        for name in names:
            resident = self._residents[self._known(name)]
            if isinstance(resident, Stored) and readable([resident]):
                found.setdefault(resident.form, name)
        return dict(sorted(found.items(), key=lambda item: -item[0].users))

    @contextmanager
    def under(self, route: Route) -> Iterator[None]:
        """The model's calls meanwhile are routed so."""
        before = at_work(self, route)
        try:
            yield
        finally:
            for bank, own in before:
                bank.current = own

    def _alone(self, name: str) -> Route:
        if isinstance(self._residents[name], Stored):
            self._shelf.fetch([name])
        return route_of(self._residents[name])

    def __reduce__(self) -> Any:
        """Its hooks call this bank, so those on a copy of the model would ask the wrong one, and answer as the plain backbone."""
        raise TaskError(
            "a bank is hooked on its backbone, and is neither copied nor pickled; save its tasks, and load them into a bank of "
            "their own on the copy"
        )

    def _known(self, name: str) -> str:
        if not isinstance(name, str):
            raise TaskError(f"a bank is asked for tasks by their names, got {type(name).__name__}; give task.name")
        name = self.aliases.get(name, name)
        if name not in self.tasks:
            known = list(self.tasks)
            raise TaskError(
                f"the bank holds no task {name!r}; it holds: {', '.join(known) or 'none'}{nearest(name, known)}"
            )
        return name

    def _check(self, task: Task) -> None:
        if not isinstance(task, Task):
            raise TaskError(f"a bank takes a Task, got {type(task).__name__}; load folders with bank.load(folder)")
        if isinstance(task, LightTask):
            raise TaskError(held(task.name))
        if task.backbone_info["fingerprint"] != self.backbone.fingerprint:
            raise TaskError(
                f"task {task.name!r} was made for backbone {task.backbone_info['name']!r} (fingerprint "
                f"{task.backbone_info['fingerprint']}), the bank's is {self.backbone.name!r} ({self.backbone.fingerprint})."
            )
        known = {site.key for site in self.backbone.sites}
        if missing := [key for key in task.sites if key not in known]:
            raise TaskError(
                f"task {task.name!r} has a module at {missing[0]!r}, which this class of the model lacks; load the backbone "
                "as the class that the task was made on."
            )

    def _hook_all(self, task: Task) -> None:
        """Hooks at all sites of a task; when one fails, none."""
        new = {}
        try:
            for key, site in task.sites.items():
                if key not in self._hooks:
                    new[key] = self._reach.hook(site)
        except BaseException:
            for hooks in new.values():
                hooks.remove()
            raise
        for key in task.sites:
            hooks, users = self._hooks.get(key) or (new[key], 0)
            self._hooks[key] = hooks, users + 1

    def _unhook_all(self, task: Task) -> None:
        """Sites that no other task uses lose their hooks."""
        for key in task.sites:
            hooks, users = self._hooks.pop(key)
            if users > 1:
                self._hooks[key] = hooks, users - 1
            else:
                hooks.remove()
