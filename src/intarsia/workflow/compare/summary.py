"""What a comparison found, from its ledger and its runs' folders; everything that the report shows."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intarsia.training.metrics import higher_is_better
from intarsia.training.record import METRICS, RUN
from intarsia.workflow.compare.budget import BASELINE
from intarsia.workflow.compare.choosing import FINAL, complete
from intarsia.workflow.compare.commands import train_command
from intarsia.workflow.compare.ledger import Event
from intarsia.workflow.compare.statistics import Difference, Interval, difference, holm, interval
from intarsia.workflow.compare.testing import RUNS

TASKS = 1000
"""Tasks over which the costs are reckoned."""


@dataclass(kw_only=True, slots=True)
class Row:
    """A candidate, as far as it came."""

    candidate: str
    shape: str
    family: str
    learning_rate: float
    stage: str
    """The last one that it was in."""
    runs: list[str]
    """Of that stage, those that were finished."""
    validation: dict[int, float]
    """Seed -> the validation metric."""
    test: dict[int, dict[str, float]] = field(default_factory=dict)
    """Seed -> metrics, of final runs."""
    parameters: int = 0
    bytes: int = 0
    steps: int = 0
    epochs: float = 0.0
    full_steps: int = 0
    """Of its recipe's length."""
    memory: int | None = None
    seconds: float = 0.0
    """Of one such run: its share of the packs that were trained."""
    command: str = ""
    against: Difference | None = None
    """Against full fine-tuning, on the test split where there is one."""
    p: float | None = None
    """Corrected for the number of methods (Holm)."""

    @property
    def final(self) -> bool:
        """Whether it ran with fresh seeds."""
        return self.stage == FINAL

    def scores(self, metric: str) -> dict[int, float]:
        """Seed -> score on the test split where it was scored there, else on validation."""
        return {seed: found[metric] for seed, found in self.test.items()} or self.validation


@dataclass(kw_only=True, slots=True)
class Point:
    """One run of a rung."""

    stage: str
    shape: str
    family: str
    learning_rate: float
    value: float
    steps: int


@dataclass(kw_only=True, slots=True)
class Curve:
    """One final run's evaluations."""

    family: str
    shape: str
    seed: int
    points: list[tuple[float, float]]
    """(epoch, validation metric)"""


@dataclass(kw_only=True, slots=True)
class Summary:
    """The whole of it."""

    start: Event
    metric: str
    higher: bool
    tested: bool
    """Whether final runs have scores on a test split."""
    choice: Event
    rows: list[Row]
    """The final ones, by seeds that they came to and then by validation mean; then those that stopped earlier."""
    points: list[Point]
    curves: list[Curve]
    answers: dict[str, Any]
    """`confusion` or `samples` of the best, and `split`."""
    left_out: list[Event]
    failed: list[Event]
    not_tried: list[str]
    cut: list[str]
    """Final runs that the budget cut short."""
    spent: float
    budget: float | None
    """Seconds, as it was given last."""

    @property
    def best(self) -> Row:
        """The chosen candidate's row."""
        return next(row for row in self.rows if row.candidate == self.choice["candidate"])

    @property
    def baseline(self) -> Row | None:
        """Full fine-tuning, where it came to the end."""
        return next((row for row in self.rows if row.family == BASELINE and row.final), None)

    @property
    def finals(self) -> list[Row]:
        """Rows with fresh seeds."""
        return [row for row in self.rows if row.final]

    def split(self) -> str:
        """Where the reported scores are from."""
        return "test" if self.tested else "validation"

    def score(self, row: Row) -> Interval:
        """Of the split that is reported."""
        return interval(list(row.scores(self.metric).values()))

    def many(self, row: Row) -> tuple[int, float]:
        """Bytes and seconds of TASKS such tasks, with the one backbone that they share."""
        return self.start["backbone_bytes"] + TASKS * row.bytes, TASKS * row.seconds


def summarise(events: Sequence[Event], out: Path) -> Summary:
    """events: those of a ledger that has its end."""
    sorts: dict[str, list[Event]] = {}
    for event in events:
        sorts.setdefault(event["event"], []).append(event)
    start, runs = sorts["start"][0], sorts.get("run", [])
    metric = start["metric"]
    higher = higher_is_better(metric)
    rows = _rows(runs, sorts, out, higher)
    tests = {event["run"]: event["metrics"] for event in sorts.get("test", []) if event["metrics"]}
    for row in rows:
        of_run = {run["run"]: run["seed"] for run in runs}
        row.test = {of_run[name]: tests[name] for name in row.runs if name in tests}
    answers = next((event for event in sorts.get("test", []) if "confusion" in event or "samples" in event), {})
    summary = Summary(
        start=start,
        metric=metric,
        higher=higher,
        tested=any(row.test for row in rows),
        choice=sorts["choice"][-1],
        rows=rows,
        points=_points(runs, rows),
        curves=[curve for run in complete(runs) if (curve := _curve(run, rows, out, metric))],
        answers=answers,
        left_out=sorts.get("left out", []),
        failed=sorts.get("failed", []),
        not_tried=sorts["plan"][-1]["given_up"],
        cut=[run["run"] for run in runs if run["stage"] == FINAL and run["stopped"] == "pruned"],
        spent=events[-1]["spent"],
        budget=events[-1].get("budget", start["settings"]["budget"]),
    )
    _compare_with_baseline(summary)
    return summary


def _rows(runs: Sequence[Event], sorts: Mapping[str, list[Event]], out: Path, higher: bool) -> list[Row]:
    stages = list(dict.fromkeys(run["stage"] for run in runs))
    finished = {run["run"] for run in complete(runs)}
    probes = {event["shape"]: event for event in sorts.get("probe", [])}
    pace = statistics.median([event["pace"] for event in sorts.get("pace", [])] or [1.0])
    rows: dict[str, Row] = {}
    for run in sorted(runs, key=lambda run: stages.index(run["stage"])):
        if run["stage"] == FINAL and run["run"] not in finished:
            continue
        row = rows.get(run["candidate"])
        if row is None or row.stage != run["stage"]:
            row = rows[run["candidate"]] = _new_row(run, out, probes, pace)
        row.runs.append(run["run"])
        row.validation[run["seed"]] = run["value"]
    sign = 1 if higher else -1

    def place(row: Row) -> tuple[int, int, float]:
        count = len(row.validation)
        return -stages.index(row.stage), -count, -sign * sum(row.validation.values()) / count

    return sorted(rows.values(), key=place)


def _new_row(run: Event, out: Path, probes: Mapping[str, Event], pace: float) -> Row:
    settings = json.loads((out / RUNS / run["run"] / RUN).read_text("utf-8"))["run"]
    shape = run["candidate"].rpartition(" lr ")[0]
    family = settings["method"]["name"]
    alike = (event for name, event in probes.items() if name.split()[0] == family)
    probe: Event = probes.get(shape) or next(alike, {})
    train = settings["train"]
    evaluations = -(-run["steps"] // train["evaluate_every"])
    taken = probe.get("start", 0.0) + run["steps"] * probe.get("step", 0.0) + evaluations * probe.get("evaluation", 0.0)
    return Row(
        candidate=run["candidate"],
        shape=shape,
        family=family,
        learning_rate=train["learning_rate"],
        stage=run["stage"],
        runs=[],
        validation={},
        parameters=run["parameters"],
        bytes=run["bytes"],
        steps=run["steps"],
        epochs=run["epochs"],
        full_steps=run["full_steps"],
        memory=probe.get("memory") if shape in probes else None,
        seconds=taken * pace,
        command=train_command(settings, f"runs/{run['run']}"),
    )


def _points(runs: Sequence[Event], rows: Sequence[Row]) -> list[Point]:
    of = {row.candidate: row for row in rows}
    return [
        Point(
            stage=run["stage"],
            shape=of[run["candidate"]].shape,
            family=of[run["candidate"]].family,
            learning_rate=of[run["candidate"]].learning_rate,
            value=run["value"],
            steps=run["steps"],
        )
        for run in runs
        if run["stage"] != FINAL
    ]


def _curve(run: Event, rows: Sequence[Row], out: Path, metric: str) -> Curve | None:
    row = next(row for row in rows if row.candidate == run["candidate"])
    path = out / RUNS / run["run"] / METRICS
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    key = f"validation_{metric}"
    points = [(line["epoch"], line[key]) for line in lines if key in line]
    return Curve(family=row.family, shape=row.shape, seed=run["seed"], points=points) if points else None


def _compare_with_baseline(summary: Summary) -> None:
    baseline = summary.baseline
    if baseline is None:
        return
    others = [row for row in summary.finals if row is not baseline]
    theirs = baseline.scores(summary.metric)
    for row in others:
        row.against = difference(row.scores(summary.metric), theirs)
    for row, p in zip(others, holm([row.against.p if row.against else None for row in others]), strict=True):
        row.p = p
