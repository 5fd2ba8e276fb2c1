"""`report.html`."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from intarsia.workflow.compare.report import cells, words
from intarsia.workflow.compare.report.page import (
    bullets,
    code,
    document,
    figure,
    heading,
    heat,
    paragraphs,
    table,
    tiles,
)
from intarsia.workflow.compare.summary import Summary

PICTURES = {"parameters": "Score against trained parameters", "curves": "Learning curves", "rates": "Learning rates"}
CONFUSION = "Confusion matrix"
BESIDE = 8
"""Labels up to which it stands among the pictures."""
MANY = 30
"""Labels beyond which a confusion matrix is a list of the commonest confusions."""


def page(summary: Summary, drawn: Mapping[str, tuple[str, str, list[tuple[str, str]]]]) -> str:
    """The whole page. drawn: as `plots.pictures` gives them."""
    body = [
        f"<h1>{escape(words.title(summary))}: which method?</h1>",
        paragraphs(words.verdict(summary), "verdict"),
        tiles(_facts(summary)),
    ]
    if summary.finals:
        ranking = cells.ranking(summary)
        body += [heading("Ranking"), table(ranking.headers, ranking.rows, bold=ranking.bold)]
    costs = cells.costs(summary)
    body += [heading("What it costs"), table(costs.headers, costs.rows, bold=costs.bold)]
    figures = [figure(PICTURES[name], *one) for name, one in drawn.items()]
    matrix = _matrix(summary)
    if matrix and len(summary.start["labels"]) <= BESIDE:
        figures.append(
            figure(
                CONFUSION,
                matrix,
                f"Of the best, on the {summary.answers['split']} split: row expected, column answered.",
            )
        )
    body += [heading("Pictures"), f'<div class="plots">{"".join(figures)}</div>']
    body += _answers(summary, matrix)
    early = cells.stopped(summary)
    if early.rows:
        body += [heading("Stopped early"), table(early.headers, early.rows, words=(0, 2))]
    body += [heading("Before you trust it"), bullets(words.cautions(summary)), heading("To make each row again")]
    body += [code(f"{row.candidate}; other seeds: --seed", row.command) for row in summary.finals or summary.rows[:1]]
    body += [heading("How it was done"), paragraphs(words.how(summary), "soft")]
    return document(words.title(summary), body)


def _facts(summary: Summary) -> list[tuple[str, str]]:
    best = summary.best
    return [
        (
            f"{summary.split()} {cells.metric_words(summary.metric)}",
            cells.plus_minus(summary.score(best), summary.metric),
        ),
        ("trained parameters", f"{best.parameters:,}"),
        ("on disk", cells.size(best.bytes)),
        ("training, one run", cells.duration(best.seconds)),
        ("1,000 tasks on disk", cells.size(summary.many(best)[0])),
        ("this comparison", cells.duration(summary.spent)),
    ]


def _matrix(summary: Summary) -> str:
    """The confusion matrix, where there is one and it is not too large."""
    labels, matrix = summary.start["labels"], summary.answers.get("confusion")
    if matrix is None or len(labels) > MANY:
        return ""
    shades = [[(count / sum(line) if sum(line) else None) for count in line] for line in matrix]
    return heat(labels, labels, [[str(count) if count else "" for count in line] for line in matrix], shades, "")


def _answers(summary: Summary, matrix: str) -> list[str]:
    """Below the pictures: drawn answers, a large confusion matrix, or the commonest confusions."""
    found, labels = summary.answers, summary.start["labels"]
    if "samples" in found:
        rows = [[one["text"], one["expected"], one["answered"]] for one in found["samples"]]
        head = heading(f"{len(rows)} answers of the best, drawn at random from the {found['split']} split")
        return [head, table(["text", "expected", "answered"], rows, words=(0, 1, 2))]
    if "confusion" not in found or len(labels) <= BESIDE:
        return []
    if not matrix:
        name = heading(f"The commonest confusions of the best ({found['split']} split)")
        return [name, table(["expected", "answered", "rows"], confusions(labels, found["confusion"]), words=(0, 1))]
    return [heading(f"{CONFUSION} of the best ({found['split']} split): row expected, column answered"), matrix]


def confusions(labels: Sequence[str], matrix: Sequence[Sequence[int]], count: int = 15) -> list[list[str]]:
    """The commonest wrong answers."""
    wrong: list[tuple[int, Any, Any]] = [
        (number, labels[i], labels[j])
        for i, line in enumerate(matrix)
        for j, number in enumerate(line)
        if i != j and number
    ]
    wrong.sort(key=lambda one: -one[0])
    return [[expected, answered, str(number)] for number, expected, answered in wrong[:count]]
