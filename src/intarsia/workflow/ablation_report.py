"""What an ablation found, in words and tables, and as a page."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intarsia.training.checkpoint import disk_errors, write_atomic
from intarsia.workflow.ablation import Ablation
from intarsia.workflow.ablation_parts import Dropped, Stack
from intarsia.workflow.compare.report import markdown
from intarsia.workflow.compare.report.cells import PER_CENT, metric_words, shown
from intarsia.workflow.compare.report.page import document, heading, heat, paragraphs, table

FILES = ("ablation.html", "ablation.md", "ablation.json")
Table = tuple[list[str], list[list[str]]]


def difference(found: Ablation, score: float) -> str:
    """−1.2, against the score with all modules; below 0 is worse, whatever the metric."""
    loss = found.loss(score) * (100 if found.metric in PER_CENT else 1)
    text = f"{abs(loss):.1f}" if found.metric in PER_CENT else f"{abs(loss):.3g}"
    return text if float(text) == 0 else f"{'−' if loss > 0 else '+'}{text}"


def spans(found: Ablation, stack: Stack) -> tuple[Table, list[list[float | None]]]:
    """The heat map, row: first layer, column: last layer, and its shades, 1 for what is lost without any module."""
    names = [str(first) if first == last else f"{first}-{last}" for first, last in stack.blocks]
    most = max([found.loss(found.without), *(found.loss(score) for score in stack.spans.values()), 1e-9])
    rows, shades = [], []
    for i, (first, _) in enumerate(stack.blocks):
        scores = [stack.spans[first, last] if j >= i else None for j, (_, last) in enumerate(stack.blocks)]
        rows.append([names[i], *("" if score is None else difference(found, score) for score in scores)])
        shades.append([None if score is None else found.loss(score) / most for score in scores])
    return (["first ↓ last →", *names], rows), shades


def single(found: Ablation, stack: Stack) -> Table:
    """Without one layer's modules."""
    return ["layer", *map(str, range(stack.depth))], [
        ["without it", *(difference(found, score) for score in stack.single)]
    ]


def dropped(found: Ablation, stack: Stack) -> Table:
    """Without the modules of the bottom layers."""
    headers = ["bottom layers without modules", f"{found.split} {metric_words(found.metric)}", "difference", "speed"]
    rows = [
        [
            str(one.layers),
            shown(one.score, found.metric),
            difference(found, one.score),
            "-" if one.speed is None else f"{one.speed:.2f} x",
        ]
        for one in stack.dropped
    ]
    return headers, rows


def lengths(found: Ablation) -> Table:
    """With the first virtual tokens alone."""
    headers = ["virtual tokens kept", f"{found.split} {metric_words(found.metric)}", "difference"]
    return headers, [[str(n), shown(score, found.metric), difference(found, score)] for n, score in found.lengths]


def words(found: Ablation) -> list[str]:
    """The answer in sentences."""
    per_cent = " %" if found.metric in PER_CENT else ""
    said = [
        f"{found.task} ({found.method['name']}): {found.split} {found.metric.replace('_', ' ')} "
        f"{shown(found.score, found.metric)}{per_cent} on {found.rows:,} row{'s' * (found.rows != 1)}; "
        f"without any of its modules, {'with its head alone, ' * found.head}"
        f"{shown(found.without, found.metric)}{per_cent}."
    ]
    said += [_suggestion(found, stack) for stack in found.stacks]
    if found.lengths:
        enough = next(n for n, score in found.lengths if found.loss(score) <= found.tolerance * abs(found.score))
        whole = found.lengths[-1][0]
        said.append(
            f"Without any of the {whole} virtual tokens the score is within {100 * found.tolerance:g} %, too."
            if enough == 0
            else f"The first {enough} of {whole} virtual tokens keep the score within {100 * found.tolerance:g} %."
            if enough < whole
            else f"None of the {whole} virtual tokens can be cut off within {100 * found.tolerance:g} %."
        )
    return said


def _suggestion(found: Ablation, stack: Stack) -> str:
    """How many bottom layers can go, at what loss, how much faster; and how to train without them."""
    where = f"In the {stack.name} " if len(found.stacks) > 1 else ""
    within = f"within {100 * found.tolerance:g} % of the score"
    if stack.can_go:
        one = next(one for one in stack.dropped if one.layers == stack.can_go)
        which = f"{one.layers} of {stack.depth} layers" if one.layers > 1 else f"layer of {stack.depth}"
        said = f"{where}the bottom {which} can go without modules {within}: {_gain(found, one)}."
    else:
        said = f"{where}no bottom layer's modules can be left out {within}."
    best, widest = stack.can_go, stack.widest
    if widest is not None and widest.layers > stack.can_go:
        layers = f"{widest.first} to {widest.first + widest.layers - 1}" if widest.layers > 1 else f"{widest.first}"
        said += f" Elsewhere, layer{'s' * (widest.layers > 1)} {layers} can: {_gain(found, widest)}."
        best = widest.layers
    # `leave_out` means layers of all stacks, and there is no training without any layer.
    if best and "leave_out" in found.method and len(found.stacks) == 1:
        first = 0 if widest is None or widest.layers <= stack.can_go else widest.first
        layers = sorted({*found.method["leave_out"], *range(first, first + best)})
        if len(layers) < stack.depth:
            said += f" To train without them from the start, which does better: --set 'method.leave_out={json.dumps(layers)}'."
    return said[0].upper() + said[1:]


def _gain(found: Ablation, one: Dropped) -> str:
    speed = "" if one.speed is None else f", answering {one.speed:.2f} times as fast"
    return f"{difference(found, one.score)}{speed}"


def write(found: Ablation, out: Path) -> None:
    """ablation.html, .md and .json in a folder. DiskError when the disk is full."""
    with disk_errors("the ablation", out, kept="the task is as it was", again="call it again"):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in zip(FILES, (_html(found), _markdown(found), plain(found)), strict=True):
            write_atomic(out / name, text.encode())


def plain(found: Ablation) -> str:
    """As JSON."""
    return json.dumps(as_dict(found), indent=1, ensure_ascii=False) + "\n"


def as_dict(found: Ablation) -> dict[str, Any]:
    """As plain values; spans as [first, last, score]."""
    whole = dataclasses.asdict(found)
    for stack in whole["stacks"]:
        stack["spans"] = [[*span, score] for span, score in stack["spans"].items()]
    return whole


def _sections(found: Ablation) -> list[tuple[str, str, Table, list[list[float | None]] | None]]:
    """(heading, explanation, table, shades)"""
    parts: list[tuple[str, str, Table, list[list[float | None]] | None]] = []
    for stack in found.stacks:
        where = f" ({stack.name})" if len(found.stacks) > 1 else ""
        heat_table, shades = spans(found, stack)
        parts.append(
            (
                f"Without the modules of a span of layers{where}",
                "Difference in points to the score with all modules. Row: the first layer of the span, column: the last.",
                heat_table,
                shades,
            )
        )
        if len(stack.blocks) < stack.depth:
            parts.append((f"Without those of one layer{where}", "", single(found, stack), None))
        note = (
            "Speed: rows a second while answering, over those with all modules; each batch's quickest of several turns."
        )
        parts.append((f"Bottom layers without modules{where}", note, dropped(found, stack), None))
    if found.lengths:
        parts.append(("Fewer virtual tokens", "The first of them are kept.", lengths(found), None))
    return parts


def _html(found: Ablation) -> str:
    title = f"{found.task}: what its modules are worth"
    body = [f"<h1>{title}</h1>", paragraphs(words(found), "verdict")]
    for name, note, (headers, rows), shades in _sections(found):
        body += [heading(name), paragraphs([note] if note else [], "soft")]
        if shades is None:
            body.append(table(headers, rows, words=(), narrow=True))
        else:
            body.append(heat([row[0] for row in rows], headers[1:], [row[1:] for row in rows], shades, headers[0]))
    return document(title, body)


def _markdown(found: Ablation) -> str:
    parts: list[str] = [f"# {found.task}: what its modules are worth", *words(found)]
    for name, note, (headers, rows), _ in _sections(found):
        parts += [f"## {name}", *([note] if note else []), markdown.table(headers, rows)]
    return "\n\n".join(parts) + "\n"


__all__: Sequence[str] = ("as_dict", "dropped", "lengths", "plain", "single", "spans", "words", "write")
