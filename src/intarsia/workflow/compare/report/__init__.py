"""The report of a comparison: `report.html`, its twin `report.md`, and the twin's pictures."""

from pathlib import Path

from intarsia.training.checkpoint import disk_errors, write_atomic
from intarsia.workflow.compare.ledger import KEPT
from intarsia.workflow.compare.report import html, markdown
from intarsia.workflow.compare.report.plots import pictures
from intarsia.workflow.compare.report.style import ALONE
from intarsia.workflow.compare.summary import Summary

HTML, MARKDOWN, PLOTS = "report.html", "report.md", "plots"


def write_report(summary: Summary, out: Path) -> None:
    """Writes it into the comparison's folder; each file is whole or absent. DiskError when the disk is full."""
    drawn = pictures(summary)
    with disk_errors("the report", out, kept=KEPT):
        (out / PLOTS).mkdir(exist_ok=True)
        for name, (svg, _, _) in drawn.items():
            styled = svg.replace(">", f"><style>{ALONE}</style>", 1)
            write_atomic(out / PLOTS / f"{name}.svg", styled.encode())
        write_atomic(out / MARKDOWN, markdown.page(summary, drawn).encode())
        write_atomic(out / HTML, html.page(summary, drawn).encode())
