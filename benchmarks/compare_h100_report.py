"""The page of bench_compare_h100."""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.compare_h100_parts import PACKS, RATES, read
from benchmarks.results import write_results

TEXT = """
32 runs over MiniLM on MRPC: 4 methods x 4 learning rates x 2 seeds, {epochs} epochs each, scored on validation after every epoch
and on the test split at the end. `ours`: one call of `run_pack`, whole: the backbone is loaded, texts are tokenised, a CUDA graph
is captured and 32 task folders are written within these seconds. `peft`: Trainer, bf16 autocast, fused AdamW, batches by length,
nothing saved or logged; tokenising is not counted. Neither side counts a short run before the first (a pack of four for ours), in
which libraries are imported and kernels compiled; nor do the peers' first runs of each method count, which took up to three
times as long. `measured`: runs that were timed whole;
`seconds` of all are reckoned from them (the mean of each method; of all methods where one was not reached). `ratio`: the peers'
seconds over ours. `test`: mean accuracy of those runs that both sides have done; `best`: of ours, the one that is best on
validation. Both sides ran on one H100, one after the other, with nothing else on it; its host is shared.
peft has no bottleneck adapters.

Seconds of the pack, by what they went into (validation waits for the steps that were sent off before it): {phases}.
"""


def report(arguments: argparse.Namespace) -> None:
    """From what the other two wrote."""
    lines = read(arguments.files)
    theirs, rows, phases = _warm([line for line in lines if line["who"] == "peft"]), [], []
    for pack, methods in PACKS.items():
        whole = next((line for line in lines if line.get("pack") == pack and "phases" in line), None)
        if whole is None:
            continue
        mine = [line for line in lines if line.get("pack") == pack and "method" in line]
        each, there = whole["members"] // len(methods), [m for m in methods if m in PACKS["peft's methods"]]
        measured = {m: [line for line in theirs if line["method"] == m] for m in there}
        mean = statistics.fmean(line["seconds"] for line in theirs)
        seconds = {m: each * (_mean([line["seconds"] for line in measured[m]]) or mean) for m in there}
        same = [(a, b) for a in mine for b in theirs if all(a[key] == b[key] for key in ("method", "rate", "seed"))]
        rows.append(
            {
                "runs": f"ours, one pack: {', '.join(methods)}", "members": whole["members"],
                "measured": whole["members"], "seconds": whole["seconds"], "extrapolated": "no",
                "ratio": round(sum(seconds.values()) / whole["seconds"], 1), "test": _mean([a["test"] for a, _ in same]),
                "best": max(mine, key=lambda line: line.get("validation", 0.0)).get("test"), "peak GB": whole["peak_gb"],
            }
        )  # fmt: skip
        rows.append(
            _peer_row(f"peft: {', '.join(there)}", each * len(there), [b for _, b in same], sum(seconds.values()))
        )
        phases.append(f"{pack}: " + ", ".join(f"{name} {value:.1f}" for name, value in whole["phases"].items()))
    rows += [_peer_row(f"peft, one run: {m}", 1, [line for line in theirs if line["method"] == m], None) for m in RATES]
    about, epochs = next((line["about"], line["epochs"]) for line in lines if "about" in line)
    text = TEXT.format(epochs=epochs, phases="; ".join(phases))
    rows = [row for row in rows if row["measured"]]
    write_results("compare_h100", "A comparison of 32 runs, beside Trainer and peft", rows, text=text, about=about)


def _warm(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the first run of each method, where there is another: it may take three times as long."""
    seen: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        seen.setdefault(line["method"], []).append(line)
    return [line for own in seen.values() for line in own[1:] or own]


def _peer_row(what: str, members: int, measured: Sequence[dict[str, Any]], seconds: float | None) -> dict[str, Any]:
    mean = _mean([line["seconds"] for line in measured])
    return {
        "runs": what, "members": members, "measured": len(measured), "seconds": round(seconds or mean or 0.0, 2),
        "extrapolated": "yes" if len(measured) < members else "no", "test": _mean([line["test"] for line in measured]),
    }  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None
