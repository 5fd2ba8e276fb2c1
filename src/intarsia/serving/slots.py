"""Rows that are written by CUDA graphs: each has a slot of its own for keys and values, so that none is moved when others join and
leave, and none waits for the padding of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from intarsia.backbone.packed import Slots
from intarsia.bank import TaskBank
from intarsia.errors import BackboneError
from intarsia.graphs.one import Written
from intarsia.routing import Resident

_COLUMNS = 256
"""Of the smallest slots; longer ones double."""


@dataclass(slots=True)
class Seat:
    """Where a row stands."""

    task: str | None
    resident: Resident | None
    """The task as it was when the row began."""
    slot: int
    unread: Sequence[int]
    """Tokens that its next pass reads: its prompt, then the newest one each time."""
    length: int = 0
    """Columns that it has read."""


class Seats:
    """The slots of one bank's graphs. Rows come and go by the number of their slot."""

    def __init__(self, bank: TaskBank, max_rows: int, max_tokens: int) -> None:
        """max_rows: at a time; max_tokens: slots times their columns, or nearly so."""
        self.bank, self.max_rows, self.max_tokens = bank, max_rows, max_tokens
        self.seats: list[Seat] = []
        self._slots: Slots | None = None
        self.able = bank.graphs is not None and bank.graphs.able and self._tried()

    def _tried(self) -> bool:
        """Whether the model does nothing that packed rows do not know."""
        assert self.bank.graphs is not None
        probe = Slots(self.bank.backbone, 1, 4)
        found = self.bank.graphs.scores([[0, 0]], [None], probe, Written([0], [0]))
        self.bank.graphs.forget(probe)
        return found is not None

    def takes(self, task: str | None) -> bool:
        """Whether this task's rows can be written so."""
        return self.able and self.bank.addresses(task)

    def sit(self, task: str | None, prompt: Sequence[int]) -> Seat:
        """A free slot; `room` has made one."""
        taken = {seat.slot for seat in self.seats}
        free = next(slot for slot in range(self.max_rows) if slot not in taken)
        self.seats.append(Seat(task, self.bank.fetched([task])[0], free, prompt))
        return self.seats[-1]

    def room(self, rows: int, columns: int) -> None:
        """For so many rows more, each of so many columns at its end. Rows that are there move only where slots are too small."""
        wanted, old = len(self.seats) + rows, self._slots
        if old is not None and old.columns >= columns and old.count >= wanted:
            return
        size = max(_COLUMNS, 1 << (columns - 1).bit_length(), 0 if old is None else old.columns)
        count = max(wanted, min(self.max_rows, self.max_tokens // size))
        self._slots = Slots(self.bank.backbone, count, size)
        if old is not None:
            assert self.bank.graphs is not None
            self._slots.take(old, [(seat.slot, place, seat.length) for place, seat in enumerate(self.seats)])
            self.bank.graphs.forget(old)
        for place, seat in enumerate(self.seats):
            seat.slot = place

    def ahead(self, names: Sequence[str], tokens: int) -> Iterator[None]:
        """Makes graphs for texts by these tasks, one with each step, while no seat is taken: making one writes to the slots.
        tokens: of a pass at most."""
        if not self.able or self.seats:
            return
        self.room(1, 1)
        slots = self._slots
        for _ in self.bank.ahead(names, tokens=tokens, rows=self.max_rows, slots=slots):
            yield
            if self.seats or self._slots is not slots:
                return

    def read(self, seats: Sequence[Seat]) -> Tensor:
        """The scores (B, V), fp32, of the word after each row's unread tokens; good until the next call."""
        assert self.bank.graphs is not None
        assert self._slots is not None
        self.bank.bring({seat.task: seat.resident for seat in seats})
        written = Written([seat.slot for seat in seats], [seat.length for seat in seats])
        tokens = [seat.unread for seat in seats]
        scores = self.bank.graphs.scores(tokens, [seat.resident for seat in seats], self._slots, written)
        if scores is None:
            raise BackboneError(f"backbone {self.bank.backbone.name!r} cannot write these rows packed; this is a bug")
        for seat, own in zip(seats, tokens, strict=True):
            seat.length += len(own) + (0 if seat.length else self._virtual(seat))
        return scores

    def _virtual(self, seat: Seat) -> int:
        """Virtual tokens that stand beside a row's own, not in its template."""
        task = None if seat.resident is None else seat.resident.task
        prompt = None if task is None else task.prompt
        return 0 if prompt is None or prompt.place == "template" else prompt.length
