"""Texts in slots: one pass of the model after the other, each begun before the tokens of the one before are made text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from torch import Tensor

from intarsia.bank import TaskBank
from intarsia.serving.sampling import choose
from intarsia.serving.slots import Seat, Seats
from intarsia.serving.writing import Emitted, Writing, taken
from intarsia.staged import Returning

PREFILL = 4096
"""Tokens of prompts that are read in one pass; a longer prompt is the only one."""


class Seated:
    """Rows that have slots. In a pass some read their newest token, and those that have just come their prompt."""

    def __init__(self, bank: TaskBank, ends: Collection[int], max_rows: int, max_tokens: int) -> None:
        """ends: tokens that end a text; the others as for Seats."""
        self._ends, self._seats = ends, Seats(bank, max_rows, max_tokens)
        self._seated: dict[Writing, Seat] = {}
        self._under_way: tuple[list[Writing], Tensor, Returning | None] | None = None
        """Rows that a pass has been begun for, their scores (B, V), and where none of them draws, its likeliest tokens. A row that
        has ended by its text in the meantime has read one token too many, which nobody sees."""

    @property
    def rows(self) -> list[Writing]:
        """In the order in which they came."""
        return list(self._seated)

    def takes(self, task: str | None) -> bool:
        """Whether this task's rows can be written so."""
        return self._seats.takes(task)

    def ahead(self, names: Sequence[str]) -> Iterator[None]:
        """As Decoder.ahead."""
        return self._seats.ahead(names, PREFILL)

    def leave(self, rows: Sequence[Writing]) -> None:
        """Their slots are free; rows that have none are left alone."""
        for row in rows:
            if (seat := self._seated.pop(row, None)) is not None:
                self._seats.seats.remove(seat)

    def step(self, admit: Callable[[], Sequence[Writing]]) -> list[Emitted]:
        """What the pass under way brings; the next one is begun with those that `admit` lets in."""
        try:
            found = self._collected()
        except Exception as error:  # noqa: BLE001 - whatever it was, other rows go on
            return self._lost(self.rows, error)
        lost = self._begin(admit())
        try:
            tokens, emitted = taken(list(found), list(found.values()), self._ends)
        except Exception as error:  # noqa: BLE001 - as above
            return self._lost(list(found), error) + [one for one in lost if one.writing not in found]
        over = [row for row, token in zip(found, tokens, strict=True) if token is None]
        self.leave(over)
        return emitted + [one for one in lost if one.writing not in over]

    def _collected(self) -> dict[Writing, int]:
        """The tokens of the pass under way, of rows that have not been cancelled since; those that end by them have left."""
        if self._under_way is None:
            return {}
        (rows, scores, best), self._under_way = self._under_way, None
        chosen = choose(scores, [row.chooser for row in rows]) if best is None else best.wait()[0].tolist()
        found = {row: token for row, token in zip(rows, chosen, strict=True) if row in self._seated}
        for row, token in found.items():
            self._seated[row].unread = [token]
        self.leave(
            [row for row, token in found.items() if token in self._ends or len(row.new) + 1 == row.sampling.max_tokens]
        )
        return found

    def _begin(self, joining: Sequence[Writing]) -> list[Emitted]:
        """The next pass. Returns those that it fails for: first those that join, then all."""
        lost: list[Emitted] = []
        if joining:
            try:
                self._seats.room(len(joining), max(row.columns for row in (*self._seated, *joining)))
                self._seated |= {row: self._seats.sit(row.task, row.prompt) for row in joining}
                self._pass()
            except Exception as error:  # noqa: BLE001 - as above
                lost = self._lost(joining, error)
        if self._under_way is None:
            try:
                self._pass()
            except Exception as error:  # noqa: BLE001 - as above
                lost += self._lost(self.rows, error)
        return lost

    def _pass(self) -> None:
        rows, total = [], 0
        for row, seat in self._seated.items():
            prompt = len(seat.unread) if len(seat.unread) > 1 else 0
            if not prompt or not total or total + prompt <= PREFILL:  # the others' turn comes
                rows.append(row)
                total += prompt
        if rows:
            scores = self._seats.read([self._seated[row] for row in rows])
            draws = any(row.sampling.temperature for row in rows)
            self._under_way = rows, scores, None if draws else Returning([scores.argmax(-1)])

    def _lost(self, rows: Sequence[Writing], error: Exception) -> list[Emitted]:
        self.leave(rows)
        return [Emitted(row, "", None, error) for row in rows]
