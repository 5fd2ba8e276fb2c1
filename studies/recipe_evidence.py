"""Writes the figures that `intarsia recipes` quotes, from the tables in results/ into the package.

    python -m studies.recipe_evidence

Call it when a study that a recipe names has been made again; a test says when that is due.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS

from intarsia.workflow.recipes import RECIPES

TARGET = Path(__file__).resolve().parent.parent / "src" / "intarsia" / "workflow" / "evidence.json"


def gather() -> dict[str, Any]:
    """study -> method -> its metric and, by data set, [score, learning rate, seeds]; of all that recipes name, as far as there."""
    named = sorted({pair for group in RECIPES.values() for recipe in group.values() for pair in recipe.evidence})
    found: dict[str, Any] = {}
    for study, method in named:
        rows = json.loads((RESULTS / f"{study}.json").read_text())["rows"]
        metric = next(name for name in rows[0] if name.startswith("test "))
        scores = {
            row.get("data", "e2e"): [row[metric], row["learning rate"], row["seeds"]]
            for row in rows
            if row["method"] == method and row.get("rows") is None
        }
        if scores:
            found.setdefault(study, {})[method] = {"metric": metric, "scores": scores}
    return found


if __name__ == "__main__":
    TARGET.write_text(json.dumps(gather(), indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {TARGET.name}")
