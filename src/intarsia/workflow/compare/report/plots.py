"""The three pictures of a comparison."""

from intarsia.methods import METHODS
from intarsia.workflow.compare.report.cells import metric_words, shown
from intarsia.workflow.compare.report.svg import COLOURS, Plot, axis
from intarsia.workflow.compare.statistics import pareto
from intarsia.workflow.compare.summary import Summary


def pictures(summary: Summary) -> dict[str, tuple[str, str, list[tuple[str, str]]]]:
    """By file name: SVG, caption, and a legend of (class, words)."""
    found = {"parameters": _parameters(summary), "curves": _curves(summary), "rates": _rates(summary)}
    return {name: one for name, one in found.items() if one is not None}


def colour(family: str) -> str:
    """The class of a method's colour, the same in every report."""
    return f"c{list(METHODS).index(family) % COLOURS}"


def _scale(summary: Summary) -> float:
    return 100.0 if metric_words(summary.metric).endswith("%") else 1.0


def _parameters(summary: Summary) -> tuple[str, str, list[tuple[str, str]]] | None:
    rows = summary.finals
    if not rows:
        return None
    scale = _scale(summary)
    scores = [summary.score(row) for row in rows]
    means = [scale * score.mean for score in scores]
    halves = [None if score.half is None else scale * score.half for score in scores]
    # Bars of three seeds can be longer than all differences: the axis holds the means, and a bar at most as much again.
    span = (max(means) - min(means)) or abs(means[0]) * 0.02
    ends = [m + s * min(h or 0.0, span) for m, h in zip(means, halves, strict=True) for s in (-1, 1)]
    plot = Plot(
        axis([row.parameters for row in rows], log=True, room=0.14),
        axis(ends),
        x_title="trained parameters",
        y_title=f"{summary.split()} {metric_words(summary.metric)}",
        label=f"{summary.split()} {summary.metric} against trained parameters",
    )
    sign = 1 if summary.higher else -1
    front = pareto([(row.parameters, sign * mean) for row, mean in zip(rows, means, strict=True)])
    plot.line([(rows[i].parameters, means[i]) for i in front], "front")
    for i, row in enumerate(rows):
        kind = colour(row.family) + ("" if i in front else " hollow")
        title = f"{row.shape}: {shown(scores[i].mean, summary.metric)}, {row.parameters:,} trained"
        plot.dot(row.parameters, means[i], kind, half=halves[i], title=title)
    plot.labels([(row.parameters, means[i], row.shape) for i, row in enumerate(rows)])
    caption = (
        "Means over seeds and their 95 % intervals. Filled points are on the Pareto front (dashed): nothing with as few trained "
        "parameters scores higher."
        if summary.higher
        else "Means over seeds and their 95 % intervals. Filled points are on the Pareto front (dashed): nothing with as few "
        "trained parameters scores lower."
    )
    return plot.svg(), caption, []


def _curves(summary: Summary) -> tuple[str, str, list[tuple[str, str]]] | None:
    scale = _scale(summary)
    points = [point for curve in summary.curves for point in curve.points]
    if not points:
        return None
    plot = Plot(
        axis([0.0, *(x for x, _ in points)], room=0.02),
        axis([scale * y for _, y in points]),
        x_title="epochs",
        y_title=f"validation {metric_words(summary.metric)}",
        label=f"validation {summary.metric} over the epochs",
    )
    for curve in summary.curves:
        kind = colour(curve.family)
        plot.line([(x, scale * y) for x, y in curve.points], f"{kind} thin")
        for x, y in curve.points[-1:]:
            plot.dot(x, scale * y, f"{kind} small")
    legend = [(colour(row.family), row.shape) for row in summary.finals]
    return plot.svg(), "A line for each final run: one method has one colour, and a line for each seed.", legend


def _rates(summary: Summary) -> tuple[str, str, list[tuple[str, str]]] | None:
    """The first rung that tried two learning rates of something."""
    stages = list(dict.fromkeys(point.stage for point in summary.points))
    for stage in stages:
        points = [point for point in summary.points if point.stage == stage]
        shapes = [s for s in dict.fromkeys(p.shape for p in points) if sum(p.shape == s for p in points) > 1]
        if shapes:
            break
    else:
        return None
    scale = _scale(summary)
    drawn = [point for point in points if point.shape in shapes]
    plot = Plot(
        axis([point.learning_rate for point in drawn], log=True),
        axis([scale * point.value for point in drawn]),
        x_title="learning rate",
        y_title=f"validation {metric_words(summary.metric)}",
        label=f"validation {summary.metric} over learning rates",
    )
    legend = []
    for shape in shapes:
        own = sorted((p for p in drawn if p.shape == shape), key=lambda p: p.learning_rate)
        kind = colour(own[0].family) + (
            " other" if any(own[0].family == s.split()[0] for s in shapes[: shapes.index(shape)]) else ""
        )
        plot.line([(p.learning_rate, scale * p.value) for p in own], kind)
        for p in own:
            plot.dot(p.learning_rate, scale * p.value, kind, title=f"{shape} lr {p.learning_rate:g}: {p.value:.4f}")
        legend.append((kind, shape))
    steps = sorted({point.steps for point in drawn})
    length = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    return plot.svg(), f"The runs of {stage}: one seed, {length} steps each, so shorter than the final ones.", legend
