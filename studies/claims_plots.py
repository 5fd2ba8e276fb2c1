"""The plots of docs/claims.md, in results/. Each is drawn if its figures are there."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from benchmarks.results import RESULTS
from matplotlib import pyplot as plt

from studies.claims import BACKBONES, LENGTHS, STDS, TEXT_LENGTHS, WIDTHS
from studies.claims_facts import DATA, Facts, Row, gaps, losses

PLOTS = {
    "claims-adapters": ("Adapters", "Test accuracy by bottleneck width and by the initial values' standard deviation"),
    "claims-ablation": ("Adapters", "Points lost without the adapters of layers i to j, nothing trained again"),
    "claims-prefix": ("Prefix", "Length of the prefix, and kinds of restaurants that were not in training"),
    "claims-prompts": ("Prompt", "How far a prompt stays behind full fine-tuning, by backbone"),
    "claims-tagging": ("P-tuning", "Tagging E2E's sentences, names that were not in training"),
}
"""Name -> the beginning of its paper's heading, and what it shows."""


def draw(facts: Facts) -> list[str]:
    """Draws what can be drawn; returns the names."""
    makers = {
        "claims-adapters": draw_adapters,
        "claims-ablation": draw_ablation,
        "claims-prefix": draw_prefix,
        "claims-prompts": draw_prompts,
        "claims-tagging": draw_tagging,
    }
    drawn = []
    for name, maker in makers.items():
        figure = maker(facts)
        if figure is not None:
            figure.savefig(RESULTS / f"{name}.png", dpi=130)
            plt.close(figure)
            drawn.append(name)
    return drawn


def shown(name: str, paper: str, folder: str) -> list[str]:
    """The lines that show a plot, under its own paper's heading."""
    begins, caption = PLOTS[name]
    return [f"![{caption}]({folder}{name}.png)", ""] if paper.startswith(begins) else []


def curve(
    panel: Any, rows: Sequence[Row], part: str, data: str, xs: Sequence[float], of: Callable[[Any], str], label: str
) -> bool:
    """Means over seeds with one standard deviation; whether there were any."""
    found = {r["variant"]: r for r in rows if (r["part"], r["data"]) == (part, data)}
    there = [x for x in xs if of(x) in found]
    mine = [found[of(x)] for x in there]
    if mine:
        panel.errorbar(
            there, [r["test"] for r in mine], yerr=[r["std"] or 0 for r in mine], marker="o", capsize=3, label=label
        )
    return bool(mine)


def finish(panel: Any, **words: Any) -> None:
    panel.set(**words)
    panel.grid(alpha=0.25)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)  # never over the curves


def draw_adapters(facts: Facts) -> Any:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
    any_left = [curve(left, facts.own, "width", d, WIDTHS, lambda m: f"width {m}", DATA[d]) for d in DATA]
    any_right = [curve(right, facts.own, "std", d, STDS, lambda s: f"std {s:g}", DATA[d]) for d in DATA]
    left.set_xscale("log", base=2)
    left.set_xticks(WIDTHS, [str(m) for m in WIDTHS])
    right.set_xscale("log")
    finish(left, xlabel="bottleneck width", ylabel="test accuracy, %", title="size")
    finish(right, xlabel="standard deviation of the initial values", ylabel="test accuracy, %", title="initial values")
    return figure if any([*any_left, *any_right]) else None


def draw_ablation(facts: Facts) -> Any:
    there = [data for data in DATA if losses(facts.own, data)]
    if not there:
        return None
    figure, panels = plt.subplots(1, len(there), figsize=(4.1 * len(there), 4), layout="constrained", squeeze=False)
    for panel, data in zip(panels[0], there, strict=True):
        loss = losses(facts.own, data)
        pairs = {tuple(map(int, span.split("-"))): value for span, value in loss.items() if "-" in span}
        depth = 1 + max(i for i, _ in pairs)
        grid = np.full((depth, depth), np.nan)
        for (i, j), value in pairs.items():
            grid[i, j] = value
        top = max(float(np.nanmax(grid)), 1.0)
        panel.imshow(grid, cmap="Reds", vmin=0, vmax=top)
        for (i, j), value in pairs.items():
            panel.text(
                j,
                i,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if value > top / 2 else "black",
            )
        panel.set(title=f"{DATA[data]} (all: {loss['all']:.1f})", xlabel="last layer j", ylabel="first layer i",
                  xticks=range(depth), yticks=range(depth))  # fmt: skip
    figure.suptitle("points lost without the adapters of layers i to j")
    return figure


def draw_prefix(facts: Facts) -> Any:
    figure, (texts, labels, kinds) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    there = [curve(texts, facts.own, "text length", "e2e", TEXT_LENGTHS, lambda n: f"length {n}", "E2E")]
    there += [curve(labels, facts.own, "length", d, LENGTHS, lambda n: f"length {n}", DATA[d]) for d in DATA]
    for panel, ticks in ((texts, TEXT_LENGTHS), (labels, LENGTHS)):
        panel.set_xscale("log")
        panel.set_xticks(ticks, [str(n) for n in ticks])
        panel.minorticks_off()
    finish(texts, xlabel="prefix length", ylabel="test BLEU (greedy)", title="table to text, SmolLM2")
    finish(labels, xlabel="prefix length", ylabel="test accuracy, %", title="classification, MiniLM")
    rows = [r for r in facts.own if r["data"] == "e2e, seen kinds" and "unseen" in r]
    for at, kind in enumerate(("seen", "unseen")):
        kinds.bar([i + 0.38 * at for i in range(len(rows))], [r[kind] for r in rows], width=0.36, label=kind)
    kinds.set_xticks([i + 0.19 for i in range(len(rows))], [r["variant"] for r in rows])
    finish(kinds, ylabel="test BLEU (greedy)", title="kinds of restaurants in training, and not")
    return figure if any(there) or rows else None


def draw_prompts(facts: Facts) -> Any:
    found = gaps(facts.own)
    if not found:
        return None
    known = list(BACKBONES)
    backbones = sorted({over for over, _ in found}, key=lambda over: known.index(over) if over in known else len(known))
    data = list(dict.fromkeys(name for _, name in found))
    figure, panel = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for at, name in enumerate(data):
        heights = [found.get((backbone, name), 0.0) for backbone in backbones]
        panel.bar([i + 0.38 * at for i in range(len(backbones))], heights, width=0.36, label=DATA.get(name, name))
    panel.set_xticks([i + 0.19 for i in range(len(backbones))], backbones)
    finish(
        panel, ylabel="points behind full fine-tuning", title="20 virtual tokens at the input, the same head and epochs"
    )
    return figure


def draw_tagging(facts: Facts) -> Any:
    rows = [r for r in facts.own if r["data"] == "slots"]
    if not rows:
        return None
    figure, panel = plt.subplots(figsize=(6, 3.8), layout="constrained")
    panel.bar([r["variant"] for r in rows], [r["test"] for r in rows], yerr=[r["std"] or 0 for r in rows], capsize=3)
    finish(panel, ylabel="F1 over whole spans, %", title="tagging, MiniLM")
    return figure
