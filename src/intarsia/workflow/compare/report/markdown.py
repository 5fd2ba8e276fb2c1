"""`report.md`: the same as the page, for places that show Markdown."""

from collections.abc import Mapping, Sequence

from intarsia.workflow.compare.report import cells, words
from intarsia.workflow.compare.report.html import MANY, PICTURES, confusions
from intarsia.workflow.compare.summary import Summary


def page(summary: Summary, drawn: Mapping[str, tuple[str, str, list[tuple[str, str]]]]) -> str:
    """The whole file; its pictures lie beside it, in plots/."""
    first, *others = words.verdict(summary)
    parts = [f"# {words.title(summary)}: which method?", f"**{first}**", *others]
    if summary.finals:
        ranking = cells.ranking(summary)
        parts += ["## Ranking", table(ranking.headers, ranking.rows, bold=ranking.bold)]
    costs = cells.costs(summary)
    parts += ["## What it costs", table(costs.headers, costs.rows, bold=costs.bold), "## Pictures"]
    for name, (_, caption, legend) in drawn.items():
        keys = f" {'; '.join(text for _, text in legend)}." if legend else ""
        parts += [f"![{PICTURES[name]}](plots/{name}.svg)", f"{PICTURES[name]}. {caption}{keys}"]
    parts += _answers(summary)
    early = cells.stopped(summary)
    if early.rows:
        parts += ["## Stopped early", table(early.headers, early.rows)]
    parts += ["## Before you trust it", bullets(words.cautions(summary)), "## To make each row again"]
    for row in summary.finals or summary.rows[:1]:
        parts += [f"{row.candidate}; other seeds: `--seed`", f"```\n{row.command}\n```"]
    parts += ["## How it was done", *words.how(summary)]
    return "\n\n".join(parts) + "\n"


def _answers(summary: Summary) -> list[str]:
    found, labels = summary.answers, summary.start["labels"]
    if "samples" in found:
        rows = [[one["text"], one["expected"], one["answered"]] for one in found["samples"]]
        return [
            f"## {len(rows)} answers of the best ({found['split']} split)",
            table(["text", "expected", "answered"], rows),
        ]
    if "confusion" not in found:
        return []
    name = f"## Confusion matrix of the best ({found['split']} split)"
    if len(labels) > MANY:
        return [name, table(["expected", "answered", "rows"], confusions(labels, found["confusion"]))]
    rows = [[label, *map(str, line)] for label, line in zip(labels, found["confusion"], strict=True)]
    return [name, table(["expected, answered", *labels], rows)]


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, bold: int | None = None) -> str:
    """A Markdown table; the row of the choice is set in bold."""
    lines = [list(headers), ["---"] * len(headers)]
    lines += [[f"**{cell}**" if cell and number == bold else cell for cell in row] for number, row in enumerate(rows)]
    return "\n".join("| " + " | ".join(_safe(cell) for cell in line) + " |" for line in lines)


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _safe(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())
