"""What the claims are judged by, and how a judgement is written.

Rules compare means; a difference below a point on small test sets is noise, and counts as none.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Row = dict[str, Any]
Verdict = Literal["holds", "partly", "does not hold", "not measured yet"]
DATA = {"mrpc": "MRPC", "sst2": "SST-2", "trec": "TREC"}
EQUAL, CLEAR = 1.0, 2.0
"""Points that count as none, and that count as much."""
BLEU_EQUAL = 0.5


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What there is to judge by: rows of this study, and of others in results/."""

    own: list[Row]
    adapters: list[Row]
    prompts: list[Row]
    tables: list[Row]
    tunes: dict[str, float]
    """Of studies.table_to_text: each method's best dev BLEU after a quarter of the rows."""

    def test(self, part: str, data: str, variant: str, backbone: str = "minilm", column: str = "test") -> float | None:
        """The mean over seeds of one row of this study."""
        wanted = (part, backbone, data, variant)
        return next(
            (r[column] for r in self.own if (r["part"], r["backbone"], r["data"], r["variant"]) == wanted), None
        )

    def adapter(self, data: str, method: str) -> float | None:
        return next((r["test accuracy"] for r in self.adapters if (r["data"], r["method"]) == (data, method)), None)

    def text(self, data: str, variant: str) -> float | None:
        """A prompt of the text-to-text tasks."""
        wanted = ("SmolLM2", data, variant)
        return next(
            (r["test accuracy"] for r in self.prompts if (r["backbone"], r["data"], r["method"]) == wanted), None
        )

    def best_prompt(self, data: str) -> Row | None:
        """Over MiniLM: the prompt with the best validation score, trained for as many epochs as the other methods."""
        mine = [
            r
            for r in self.prompts
            if (r["backbone"], r["data"]) == ("MiniLM", data) and r["method"].startswith("prompt 20")
        ]
        return max((r for r in mine if "2 x epochs" not in r["method"]), key=lambda r: r["validation"], default=None)

    def table(self, runs: str, method: str, rows: int | None = None) -> float | None:
        wanted = (runs, method, rows)
        return next((r["test BLEU"] for r in self.tables if (r["runs"], r["method"], r.get("rows")) == wanted), None)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim and what became of it."""

    claim: str
    paper: str
    here: str
    verdict: Verdict
    rule: str
    source: str
    """A page in results/."""


def over_data(get: Callable[[str], float | None], data: Iterable[str] = DATA) -> float | None:
    """The mean over the data sets; None while one is missing."""
    found = [get(name) for name in data]
    return None if None in found else statistics.mean(found)  # type: ignore[type-var]


def judged(*parts: bool) -> Verdict:
    """All, some or none of the parts of a claim."""
    return "holds" if all(parts) else "partly" if any(parts) else "does not hold"


def listed(pairs: Sequence[tuple[object, float]], digits: int = 1) -> str:
    return ", ".join(f"{name}: {value:.{digits}f}" for name, value in pairs)


def complete(get: Callable[[Any], float | None], of: Iterable[Any]) -> list[tuple[Any, float]]:
    """(x, value) of those that are there."""
    return [(x, value) for x in of if (value := get(x)) is not None]


def finding(claim: str, paper: str, rule: str, source: str, found: tuple[str, Verdict] | None) -> Finding:
    here, verdict = found or ("", "not measured yet")
    return Finding(claim=claim, paper=paper, here=here, verdict=verdict, rule=rule, source=source)


def losses(own: Sequence[Row], data: str) -> dict[str, float]:
    """Points that are lost without the modules of layers "i-j", or without "all"; {} where it was not measured."""
    rows = [r for r in own if (r["part"], r["data"]) == ("ablation", data)]
    whole = next((r["test"] for r in rows if r["variant"] == "whole"), 0.0)
    return {r["variant"]: whole - r["test"] for r in rows if r["variant"] != "whole"}


def gaps(own: Sequence[Row]) -> dict[tuple[str, str], float]:
    """(backbone, data) -> points of the prompt behind full fine-tuning, for whatever backbones were run."""
    score = {(r["part"], r["backbone"], r["data"]): r["test"] for r in own if r["part"] in ("size", "size, full")}
    return {(b, d): score["size, full", b, d] - value for (part, b, d), value in score.items()
            if part == "size" and ("size, full", b, d) in score}  # fmt: skip
