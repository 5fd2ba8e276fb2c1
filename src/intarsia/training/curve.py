"""The picture of a run: loss above, validation metric below, against optimizer steps."""

import io
import json
from pathlib import Path
from typing import Any

from intarsia.training.checkpoint import disk_errors, write_atomic
from intarsia.training.metrics import higher_is_better
from intarsia.training.record import METRICS, RUN

_BLUE, _ORANGE, _INK, _FAINT = "#2f6db3", "#d9822b", "#333333", "#d8d8d8"


def draw_run(folder: Path) -> None:
    """`curve.png` of a run that has ended, from what it wrote. It takes a tenth of a second, which is why the many runs of a
    comparison go without. DiskError where it cannot be written."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    facts = json.loads((folder / RUN).read_text())
    steps, metric = facts["result"]["steps"], facts["settings"]["metric"]
    with disk_errors("curve.png", folder):
        draw_curve(lines, metric, f"{folder.resolve().name}: {steps:,} steps", folder / "curve.png")


def draw_curve(lines: list[dict[str, Any]], metric: str | None, title: str, path: Path) -> None:
    """lines: those of `metrics.jsonl`. metric: the one that names the best weights; None without validation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logged = [line for line in lines if "loss" in line]
    evaluated = [line for line in lines if "validation_loss" in line]
    both = metric is not None and metric != "loss" and bool(evaluated)
    figure = Figure(figsize=(7.2, 5.4 if both else 3.6), dpi=120)
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 if both else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_loss(panels[0], logged, evaluated)
    if both:
        _draw_metric(panels[1], evaluated, str(metric))
    for panel in panels:
        panel.grid(color=_FAINT, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=_INK, length=3)
    panels[0].set_title(title, loc="left", color=_INK, fontsize=11)
    panels[-1].set_xlabel("optimizer steps", color=_INK)
    panels[-1].set_xlim(left=0)
    # Margins by hand: an automatic layout lays out every text twice, and a pack has a picture for each of its members.
    figure.subplots_adjust(left=0.11, right=0.98, bottom=0.1 if both else 0.15, top=0.94 if both else 0.91, hspace=0.08)
    figure.align_ylabels(panels)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", pil_kwargs={"compress_level": 3})
    write_atomic(path, drawn.getvalue())


def _draw_loss(panel: Any, logged: list[dict[str, Any]], evaluated: list[dict[str, Any]]) -> None:
    steps, losses = [line["step"] for line in logged], [line["loss"] for line in logged]
    noisy = len(losses) > 20
    panel.plot(
        steps,
        losses,
        color=_BLUE,
        linewidth=1.0 if noisy else 1.8,
        alpha=0.3 if noisy else 1.0,
        label=None if noisy else "training",
    )
    if noisy:
        panel.plot(steps, _smooth(losses), color=_BLUE, linewidth=1.8, label="training, smoothed")
    if evaluated:
        at, values = [line["step"] for line in evaluated], [line["validation_loss"] for line in evaluated]
        panel.plot(at, values, color=_ORANGE, linewidth=1.4, marker="o", markersize=4, label="validation")
        panel.legend(frameon=False, labelcolor=_INK)
    panel.set_ylabel("loss", color=_INK)


def _draw_metric(panel: Any, evaluated: list[dict[str, Any]], metric: str) -> None:
    steps, values = [line["step"] for line in evaluated], [line[f"validation_{metric}"] for line in evaluated]
    best = (max if higher_is_better(metric) else min)(values)
    at = steps[values.index(best)]
    panel.plot(steps, values, color=_ORANGE, linewidth=1.4, marker="o", markersize=4)
    panel.plot([at], [best], color=_ORANGE, marker="o", markersize=9, markerfacecolor="white", markeredgewidth=1.8)
    # Left of the point in the right half of the picture: the text stays inside.
    right = at > (steps[0] + steps[-1]) / 2
    panel.annotate(
        f"best {best:.4g}",
        (at, best),
        xytext=(-9 if right else 9, -13 if higher_is_better(metric) else 9),
        textcoords="offset points",
        ha="right" if right else "left",
        color=_INK,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},  # above the line
    )
    panel.set_ylabel(f"validation {metric.replace('_', ' ')}", color=_INK)
    panel.margins(y=0.15)


def _smooth(values: list[float]) -> list[float]:
    """Mean over a centred window of about a twentieth of the run; shorter at both ends."""
    half = max(1, len(values) // 40)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
