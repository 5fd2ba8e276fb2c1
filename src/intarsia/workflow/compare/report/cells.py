"""The report's tables, cell by cell, for the page, its Markdown twin and the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

from intarsia.workflow.compare.statistics import Interval, interval
from intarsia.workflow.compare.summary import TASKS, Row, Summary

PER_CENT = frozenset(
    {
        "accuracy",
        "f1",
        "micro_f1",
        "macro_f1",
        "precision",
        "recall",
        "exact_match",
        "illegal",
        "rouge_l",
        "rouge_1",
        "rouge_2",
    }
)
"""Metrics from 0 to 1 that people say in per cent."""


@dataclass(frozen=True, slots=True)
class Table:
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: int | None = None
    """The row of the choice."""


def shown(value: float, metric: str) -> str:
    """A score: 94.2 for an accuracy of 0.942."""
    return f"{100 * value:.1f}" if metric in PER_CENT else f"{value:.4g}"


def metric_words(metric: str) -> str:
    """`accuracy, %`."""
    words = metric.replace("_", " ")
    return f"{words}, %" if metric in PER_CENT else words


def plus_minus(found: Interval, metric: str) -> str:
    """Mean and half the width of the 95 % interval."""
    return shown(found.mean, metric) + (f" ± {shown(found.half, metric)}" if found.half is not None else "")


def size(count: float) -> str:
    """Bytes as people say them."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """12 s, 3.4 min, 12 h."""
    for factor, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def ranking(summary: Summary) -> Table:
    """The final rows: scores, and how they stand to full fine-tuning."""
    metric, split = summary.metric, summary.split()
    headers = ["method", "learning rate", f"validation {metric_words(metric)}"]
    headers += [f"{split} {metric_words(metric)}"] if summary.tested else []
    others = _other_metrics(summary)
    headers += [f"{split} {metric_words(name)}" for name in others]
    headers += ["against full fine-tuning", "p", "seeds"]
    rows = []
    for row in summary.finals:
        cells = [row.shape, f"{row.learning_rate:g}", plus_minus(interval([*row.validation.values()]), metric)]
        if summary.tested:
            cells.append(plus_minus(summary.score(row), metric))
        cells += [plus_minus(interval([found[name] for found in row.test.values()]), name) for name in others]
        rows.append([*cells, *_against(row, summary), str(len(row.validation))])
    return Table(headers, rows, _bold(summary.finals, summary))


def _other_metrics(summary: Summary) -> list[str]:
    """Test metrics beside the one that was chosen by: of generated text, that is what people look at."""
    if summary.start["kind"] != "generation" or not summary.tested:
        return []
    found = summary.finals[0].test
    return [name for name in next(iter(found.values()), {}) if name not in (summary.metric, "loss")][:3]


def _against(row: Row, summary: Summary) -> list[str]:
    if row is summary.baseline:
        return ["-", "-"]
    if row.against is None:
        return ["not compared", "-"]
    mean = row.against.mean
    half = "" if row.against.half is None else f" ± {shown(row.against.half, summary.metric)}"
    sign = "+" if mean >= 0 else "−"
    p = "-" if row.p is None else ("< 0.001" if row.p < 0.001 else f"{row.p:.3f}")
    return [f"{sign}{shown(abs(mean), summary.metric)}{half}", p]


def costs(summary: Summary) -> Table:
    """The final rows: what they cost, for one task and for a thousand."""
    headers = [
        "method", "trained", "of the backbone", "on disk", "peak memory", "time",
        "1,000 tasks: disk", "each of them", "1,000 tasks: time",
    ]  # fmt: skip
    rows = []
    for row in summary.finals or summary.rows[:1]:
        disk, seconds = summary.many(row)
        share = 100 * row.parameters / summary.start["backbone_parameters"]
        rows.append(
            [
                row.shape,
                f"{row.parameters:,}",
                f"{share:.3g} %",
                size(row.bytes),
                "-" if row.memory is None else size(row.memory),
                duration(row.seconds),
                size(disk),
                size(disk / TASKS),
                duration(seconds),
            ]
        )
    return Table(headers, rows, _bold(summary.finals, summary))


def stopped(summary: Summary) -> Table:
    """Candidates that did not come to the end."""
    rows = [
        [
            row.shape,
            f"{row.learning_rate:g}",
            row.stage,
            f"{row.steps:,} ({row.epochs:.2g} epochs)",
            shown(next(iter(row.validation.values())), summary.metric),
            f"{row.parameters:,}",
        ]
        for row in summary.rows
        if not row.final
    ]
    headers = [
        "method",
        "learning rate",
        "stopped after",
        "steps",
        f"validation {metric_words(summary.metric)}",
        "trained",
    ]
    return Table(headers, rows)


def _bold(rows: Sequence[Row], summary: Summary) -> int | None:
    return next((i for i, row in enumerate(rows) if row.candidate == summary.choice["candidate"]), None)
