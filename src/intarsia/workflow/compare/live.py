"""What a person sees of a comparison while it runs: a live table, plain lines where there is no terminal, or nothing."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TextIO

from intarsia.workflow.compare.ledger import Event


class View(Protocol):
    def begin(self, spent: Callable[[], float], budget: float | None) -> None:
        """spent: gives the seconds so far. budget: seconds in all."""
        ...

    def say(self, line: str) -> None:
        """One line that stays."""
        ...

    def stage(self, stage: str, members: Sequence[Event], *, higher: bool) -> None:
        """The runs of a stage; some may be done already. higher: whether a higher score is better."""
        ...

    def evaluated(self, run: str, step: int, value: float) -> None: ...

    def ended(self, run: str, value: float | None) -> None:
        """A run has come to its end; without a value it failed."""
        ...

    def stop(self) -> None:
        """The comparison is over, well or not."""
        ...


class Clock:
    """`2:13 of 10:00`."""

    def __init__(self, spent: Callable[[], float] = lambda: 0.0, budget: float | None = None) -> None:
        self.spent, self.end = spent, "" if budget is None else f" of {_minutes(budget)}"

    def __call__(self) -> str:
        return _minutes(self.spent()) + self.end


class SilentView:
    def begin(self, spent: Callable[[], float], budget: float | None) -> None: ...
    def say(self, line: str) -> None: ...
    def stage(self, stage: str, members: Sequence[Event], *, higher: bool) -> None: ...
    def evaluated(self, run: str, step: int, value: float) -> None: ...
    def ended(self, run: str, value: float | None) -> None: ...
    def stop(self) -> None: ...


class PlainView:
    """A line for each stage and each run that has ended."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._clock = stream, Clock()
        self._members: dict[str, Event] = {}
        self._place = ""

    def begin(self, spent: Callable[[], float], budget: float | None) -> None:
        self._clock = Clock(spent, budget)

    def say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def stage(self, stage: str, members: Sequence[Event], *, higher: bool) -> None:
        self._members, self._place = {one["run"]: one for one in members}, stage
        self.say(f"{self._clock()}  {stage}: {_said(members)}")

    def evaluated(self, run: str, step: int, value: float) -> None: ...

    def ended(self, run: str, value: float | None) -> None:
        one = self._members[run]
        score = "failed" if value is None else f"{value:.4f}"
        self.say(f"{self._clock()}  {self._place}  {one['candidate']}  seed {one['seed']}: {score}")

    def stop(self) -> None: ...


class LiveView:
    """A row for each run of the stage, the best on top."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, highlight=False)
        self._clock, self._higher = Clock(), True
        self._members: dict[str, dict[str, Any]] = {}
        self._title = ""
        self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._table)
        self._live.start()

    def begin(self, spent: Callable[[], float], budget: float | None) -> None:
        self._clock = Clock(spent, budget)

    def say(self, line: str) -> None:
        self._live.console.print(line, markup=False, soft_wrap=True)

    def stage(self, stage: str, members: Sequence[Event], *, higher: bool) -> None:
        self._title, self._higher = f"{stage}: {_said(members)}", higher
        self._members = {one["run"]: {**one, "step": 0, "value": None, "state": ""} for one in members}

    def evaluated(self, run: str, step: int, value: float) -> None:
        if run in self._members:
            self._members[run] |= {"step": step, "value": value}

    def ended(self, run: str, value: float | None) -> None:
        one = self._members[run]
        one |= {"state": "failed" if value is None else "done", "value": value, "step": one["steps"]}

    def stop(self) -> None:
        self._live.stop()

    def _table(self) -> Any:
        from rich import box
        from rich.table import Table

        table = Table(
            "candidate", "seed", "steps", "score", "", title=f"{self._clock()}  {self._title}", box=box.SIMPLE_HEAD
        )
        sign = 1 if self._higher else -1

        def place(one: dict[str, Any]) -> tuple[bool, float]:
            return one["value"] is None, -sign * (one["value"] or 0.0)

        for one in sorted(self._members.values(), key=place)[: max(5, self._console.height - 8)]:
            score = "" if one["value"] is None else f"{one['value']:.4f}"
            table.add_row(one["candidate"], str(one["seed"]), f"{one['step']}/{one['steps']}", score, one["state"])
        return table


def open_view(stream: TextIO | None = None) -> View:
    """A live table on a terminal, plain lines elsewhere. stream: standard error if not given."""
    target: TextIO = sys.stderr if stream is None else stream
    return LiveView(target) if target.isatty() else PlainView(target)


def _said(members: Sequence[Event]) -> str:
    steps = sorted({one["steps"] for one in members})
    length = f"{steps[0]:,} steps" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,} steps"
    return f"{len(members)} run{'s' * (len(members) != 1)} of {length}"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
