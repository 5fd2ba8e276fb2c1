"""What a person sees of a run: a live bar, plain lines where there is no terminal, or nothing."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

_PLAIN_SECONDS = 10.0


class Reporter(Protocol):
    def say(self, line: str) -> None:
        """One line that stays."""
        ...

    def start(self, total: int, done: int) -> None:
        """The steps of the run, and how many of them an earlier run has done."""
        ...

    def advance(self, step: int) -> None:
        """Step `step` has been sent off. Called for each step; must be cheap."""
        ...

    def log(self, step: int, loss: float, tokens_per_second: float) -> None: ...

    def evaluated(self, step: int, metrics: dict[str, float], metric: str, best: bool) -> None: ...

    def stop(self) -> None:
        """The run has ended, well or not. May be called twice."""
        ...


class PackReporter(Protocol):
    """Shows the runs of a pack side by side."""

    def say(self, line: str) -> None:
        """One line that stays."""
        ...

    def member(self, name: str) -> Reporter:
        """What one of them tells."""
        ...


def open_pack_reporter(stream: TextIO | None = None) -> PackReporter:
    """A bar for each run on a terminal, plain lines elsewhere. stream: standard error if not given."""
    target: TextIO = sys.stderr if stream is None else stream
    return LivePackReporter(target) if target.isatty() else PlainPackReporter(target)


def open_reporter(stream: TextIO | None = None, *, silent: bool = False) -> Reporter:
    """A live bar on a terminal, plain lines elsewhere. stream: standard error if not given."""
    target: TextIO = sys.stderr if stream is None else stream
    if silent:
        return SilentReporter()
    return LivePackReporter(target).member("training") if target.isatty() else PlainReporter(target)


class SilentReporter:
    def say(self, line: str) -> None: ...
    def start(self, total: int, done: int) -> None: ...
    def advance(self, step: int) -> None: ...
    def log(self, step: int, loss: float, tokens_per_second: float) -> None: ...
    def evaluated(self, step: int, metrics: dict[str, float], metric: str, best: bool) -> None: ...
    def stop(self) -> None: ...


class PlainReporter:
    """Lines without colours or cursor movements: one per evaluation, and one for every ten seconds of training."""

    def __init__(self, stream: TextIO, *, every: float = _PLAIN_SECONDS) -> None:
        self._stream = stream
        self._every = every
        self._total = self._first = 0
        self._began = self._last = 0.0

    def say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def start(self, total: int, done: int) -> None:
        self._total, self._first = total, done
        self._began = self._last = time.perf_counter()

    def advance(self, step: int) -> None: ...

    def log(self, step: int, loss: float, tokens_per_second: float) -> None:
        now = time.perf_counter()
        if now - self._last < self._every:
            return
        self._last = now
        left = (now - self._began) / max(1, step - self._first) * (self._total - step)
        speed = f"{_short(tokens_per_second)} tokens/s"
        self.say(f"{self._place(step)}  loss {loss:.4f}  {speed}  {_clock(left)} left")

    def evaluated(self, step: int, metrics: dict[str, float], metric: str, best: bool) -> None:
        self.say(f"{self._place(step)}  {_evaluation(metrics, metric, best)}")

    def stop(self) -> None: ...

    def _place(self, step: int) -> str:
        return f"step {step:>{len(str(self._total))}}/{self._total}"


class PlainPackReporter:
    """The lines of PlainReporter, each behind its run's name."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def member(self, name: str) -> Reporter:
        """Its lines among those of the others."""
        return PlainReporter(_Named(self._stream, name))  # type: ignore[arg-type]


class _Named:
    """A stream whose lines begin with a name."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._begins = stream, name, True

    def write(self, text: str) -> None:
        self._stream.write(f"{self._name}: {text}" if self._begins else text)
        self._begins = text.endswith("\n")

    def flush(self) -> None:
        self._stream.flush()


class LivePackReporter:
    """A bar for each run, redrawn ten times a second from another thread."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream, highlight=False)
        self._bars, self._running = _bars(self._console), 0

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def member(self, name: str) -> Reporter:
        """A bar under the others."""
        return LiveReporter(self._console, bars=self, name=name)

    def add(self, name: str, total: int, done: int) -> Any:
        """A new bar; shown from the first to the last run's end."""
        if not self._running:
            self._bars.start()
        self._running += 1
        return self._bars.add_task(name, total=total, completed=done, loss="", score="", speed="")

    def update(self, task: Any, **values: Any) -> None:
        """Changes a bar."""
        self._bars.update(task, **values)

    def remove(self, task: Any) -> None:
        """One run has ended; its bar stays, but not in the way of those that the terminal has no line for. In the end all are
        there."""
        self._running -= 1
        if not self._running:
            for each in self._bars.task_ids:
                self._bars.update(each, visible=True)
            self._bars.stop()
        elif sum(each.visible for each in self._bars.tasks) > self._console.height:
            self._bars.update(task, visible=False)


class LiveReporter:
    """A bar that redraws itself ten times a second from another thread; a step costs it some microseconds."""

    def __init__(self, console: Any, *, bars: LivePackReporter, name: str = "training") -> None:
        self._console, self._bars, self._name = console, bars, name
        self._prefix = "" if name == "training" else f"{name}: "
        self._task: Any = None

    def say(self, line: str) -> None:
        self._console.print(self._prefix + line, markup=False, soft_wrap=True)

    def start(self, total: int, done: int) -> None:
        self._task = self._bars.add(self._name, total, done)

    def advance(self, step: int) -> None:
        self._bars.update(self._task, completed=step)

    def log(self, step: int, loss: float, tokens_per_second: float) -> None:
        self._bars.update(self._task, loss=f"loss {loss:.3f}", speed=f"{_short(tokens_per_second)} tok/s")

    def evaluated(self, step: int, metrics: dict[str, float], metric: str, best: bool) -> None:
        self._bars.update(self._task, score=f"{metric} {metrics[metric]:.4f}")
        self.say(f"step {step}  {_evaluation(metrics, metric, best)}")

    def stop(self) -> None:
        if self._task is not None:
            self._bars.remove(self._task)
            self._task = None


def _bars(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Name(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(_cut(task.description, console.width // 4))

    class Score(ProgressColumn):
        def render(self, task: Any) -> Text:
            score, loss = task.fields["score"], task.fields["loss"]
            return Text(score or ("" if bars.room() >= with_loss else loss), style="bold")

    class Bars(Progress):
        def room(self) -> int:
            """What names leave of a line."""
            return console.width - min(
                console.width // 4, max((len(task.description) for task in self.tasks), default=0)
            )

        def get_renderables(self) -> Any:
            room = self.room()
            self.columns = tuple(column for least, column in columns if room >= least)
            return super().get_renderables()

    with_loss = 38
    columns = (  # each with the room from which it is shown
        (0, Name(Column(no_wrap=True))),
        (60, BarColumn(bar_width=None)),
        (0, MofNCompleteColumn(table_column=Column(no_wrap=True))),
        (with_loss, TextColumn("{task.fields[loss]}")),
        (0, Score(Column(no_wrap=True))),
        (70, TextColumn("{task.fields[speed]}")),
        (52, TimeRemainingColumn(table_column=Column(no_wrap=True))),
        (52, TextColumn("left")),
    )
    bars = Bars(console=console, expand=True)
    return bars


def _cut(name: str, room: int) -> str:
    """Without its middle where it is too long: names of one pack may differ at either end."""
    half = max(1, room - 1) // 2
    return name if len(name) <= room else f"{name[: max(1, room - 1) - half]}…{name[-half:]}"


def _evaluation(metrics: dict[str, float], metric: str, best: bool) -> str:
    others = (name for name in metrics if name not in {metric, "loss"})
    names = [metric, *others, *(["loss"] if metric != "loss" else [])]
    return (
        "validation: "
        + "  ".join(f"{name} {metrics[name]:.4f}" for name in names)
        + ("  (best so far)" if best else "")
    )


def _short(number: float) -> str:
    """999, 12.3k, 4.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


def _clock(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


@contextmanager
def ticking(what: str, total: int, stream: TextIO | None = None) -> Iterator[Callable[[], None]]:
    """A bar on a terminal that moves with each call of what it yields; nothing elsewhere. stream: standard error if not given."""
    target: TextIO = sys.stderr if stream is None else stream
    if not target.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=target), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
