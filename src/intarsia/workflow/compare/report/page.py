"""HTML: one file with all that it needs, and nothing from a network."""

from collections.abc import Sequence
from html import escape

from intarsia.workflow.compare.report.style import PAGE


def document(title: str, body: Sequence[str]) -> str:
    """A whole page."""
    inner = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{PAGE}</style></head>\n'
        f"<body><main>\n{inner}\n</main></body></html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraphs(lines: Sequence[str], kind: str = "") -> str:
    inner = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="{kind}">{inner}</div>' if kind else inner


def bullets(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    """(words, number)"""
    inner = "".join(
        f'<div class="tile"><b>{escape(value)}</b><small>{escape(name)}</small></div>' for name, value in facts
    )
    return f'<div class="tiles">{inner}</div>'


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    bold: int | None = None,
    words: Sequence[int] = (0,),
    narrow: bool = False,
) -> str:
    """words: columns that hold words, not numbers. narrow: as wide as its cells, not as the page."""

    def kind(i: int, cell: str = "") -> str:
        return f' class="text{" wrap" if len(cell) > 60 else ""}"' if i in words else ""

    head = "".join(f"<th{kind(i)}>{escape(name)}</th>" for i, name in enumerate(headers))
    lines = [
        f"<tr{' class=chosen' if number == bold else ''}>"
        + "".join(f"<td{kind(i, cell)}>{escape(cell)}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for number, row in enumerate(rows)
    ]
    opening = '<table class="narrow">' if narrow else "<table>"
    return f'<div class="scroll">{opening}<thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def figure(name: str, svg: str, caption: str, legend: Sequence[tuple[str, str]] = ()) -> str:
    """legend: (class, words)"""
    keys = "".join(f'<span><i class="{kind}"></i>{escape(words)}</span>' for kind, words in legend)
    return (
        f"<figure><h3>{escape(name)}</h3>{svg}"
        + (f'<div class="legend">{keys}</div>' if keys else "")
        + f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    shades: Sequence[Sequence[float | None]],
    corner: str,
) -> str:
    """A table whose cells are shaded from 0 to 1; None: left white."""

    def cell(text: str, shade: float | None, diagonal: bool) -> str:
        style = "" if shade is None else f' style="background:rgba(var(--heat),{0.75 * min(1.0, max(0.0, shade)):.2f})"'
        return f"<td{' class=diagonal' if diagonal else ''}{style}>{escape(text)}</td>"

    head = f'<th class="text">{escape(corner)}</th>' + "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = [
        f'<tr><td class="text">{escape(name)}</td>'
        + "".join(cell(text, shade, i == j) for j, (text, shade) in enumerate(zip(line, shade_line, strict=True)))
        + "</tr>"
        for i, (name, line, shade_line) in enumerate(zip(rows, cells, shades, strict=True))
    ]
    return f'<div class="scroll"><table class="heat"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def code(title: str, text: str) -> str:
    return f"<small>{escape(title)}</small><pre>{escape(text)}</pre>"
