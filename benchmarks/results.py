"""How every benchmark and study writes down what it measured: results/NAME.json, and results/NAME.md made from it."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intarsia.training.record import commit, hardware, versions

RESULTS = Path(__file__).resolve().parent.parent / "results"


def write_results(
    name: str, study: str, rows: Sequence[dict[str, Any]], *, text: str = "", about: dict | None = None
) -> Path:
    """rows: flat objects. text: Markdown that stands above the table. about: facts of the machine that measured, when the
    report is made on another one. The commit may be given as INTARSIA_COMMIT where there is no repository."""
    facts = about or machine()
    whole = {"study": study, **facts, "rows": list(rows)}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / f"{name}.md").write_text(markdown(name, whole, text))
    return path


def kept(
    name: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows that NAME.json has of other jobs than these (as `columns` tell jobs apart) and these; and `machine`, with the
    commands of both."""
    facts, path = machine(), RESULTS / f"{name}.json"
    if not path.exists():
        return list(rows), facts
    old, measured = json.loads(path.read_text()), {tuple(row.get(column) for column in columns) for row in rows}
    others = [row for row in old["rows"] if tuple(row.get(column) for column in columns) not in measured]
    if others:
        known = facts["command"] in old["command"].split(" && ")
        facts["command"] = old["command"] if known else f"{old['command']} && {facts['command']}"
    return [*others, *rows], facts


def machine() -> dict[str, Any]:
    """Hardware, versions, command and commit of this process."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"-m {spec.name}" if spec is not None else shlex.quote(sys.argv[0])
    # Where a folder lies is this machine's affair; what it holds is in its name.
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    command = f"python {program} {shlex.join(words)}".strip()
    return {
        "hardware": hardware(),
        "versions": versions(),
        "command": command,
        "commit": os.environ.get("INTARSIA_COMMIT") or commit(),
    }


def markdown(name: str, whole: dict[str, Any], text: str) -> str:
    """The page: what was measured, the table, and where it came from."""
    facts = whole["hardware"]
    on = ", ".join(filter(None, [", ".join(facts["gpus"]), facts["cpu"], f"{facts['cores']} cores"]))
    software = ", ".join(f"{key} {value}" for key, value in whole["versions"].items())
    return "\n".join(
        [
            f"# {whole['study']}",
            "",
            *([text.strip(), ""] if text else []),
            tables(whole["rows"]),
            "",
            f"Measured on {on}; {software}; commit `{whole['commit']}`.  ",
            f"Command: `{whole['command']}`. Made from `{name}.json`.",
            "",
        ]
    )


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each `job`, where rows have one: jobs have columns of their own."""
    jobs = dict.fromkeys(row.get("job") for row in rows)
    return "\n\n".join(table([row for row in rows if row.get("job") == job]) for job in jobs) or table(rows)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table; numbers to four digits."""
    if not rows:
        return "(no rows)"
    names = list(dict.fromkeys(key for row in rows for key in row))
    lines = [names, ["---"] * len(names), *([_cell(row.get(name)) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
