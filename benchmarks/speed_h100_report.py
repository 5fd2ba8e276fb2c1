"""The page of bench_speed_h100, from what its --out files hold: results/speed_h100.{json,md}, and the runs beside them.

python -m benchmarks.speed_h100_report speed.jsonl --about machine.json --notes results/speed_h100.notes.md
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, write_results
from benchmarks.speed_h100_parts import DECODERS

TEXT = """
Backbones of the named shapes with random weights; rows with the lengths of MRPC's training pairs (language models: about 80
tokens, half of them targets); 32, 16 and 8 rows a step. Ours: the product's packed steps, a CUDA graph each. The peers: a plain
loop with bf16 autocast, fused AdamW, and rows of like length in a batch. `x peer`: against the fastest peer of the same method
and shape in this table. `of the floor`: against the frozen trunk alone (forward, and backward to the embeddings), packed, in a
graph of 16,384 tokens with our own attention kernel; the faster of plain and compiled where both are there. `of torch's`: against
the same with torch's own varlen_attn.

{notes}
"""
READS = {"first": "the first token", "graph": "the mean"}


def report(runs: list[Path], about: Path, notes: str) -> None:
    """results/speed_h100.{json,md}, from what `--out` holds; about: the `machine()` of the measuring machine."""
    found = {
        row["job"]: row
        for path in runs
        for row in map(json.loads, path.read_text().splitlines())
        if "failed" not in row
    }
    (RESULTS / "speed_h100.runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found.values()))
    floors = {job: row["ktokens_per_second"] for job, row in found.items() if job.startswith("floor:bert-base:16384")}
    theirs, rows = floors.pop("floor:bert-base:16384:torch", None), []
    floor = max(floors.values(), default=None)
    for job, row in found.items():
        who, shape, *what = job.split(":")
        if who in ("kernel", "where"):
            continue
        method = what[0] if who != "floor" else f"{int(what[0]):,} tokens, {what[1]}"
        peers = [
            other["ktokens_per_second"]
            for name, other in found.items()
            if name.split(":")[0] in ("peft", "adapters") and name.split(":")[1:3] == [shape, method]
        ]
        members, speed = int(what[1]) if who == "ours" else 1, row["ktokens_per_second"]
        rows.append(
            {
                "job": "speed",
                "who": who,
                "shape": shape,
                "method": method,
                "head reads": READS[what[2]] if who == "ours" and shape not in DECODERS else None,
                "members": members,
                "thousand tokens/s": speed,
                "slowest": row["slowest"],
                "fastest": row["fastest"],
                "x peer": round(speed / max(peers), 1) if who == "ours" and peers else None,
                "of the floor": _share(speed, floor if who == "ours" and shape == "bert-base" else None),
                "of torch's": _share(speed, theirs if who == "ours" and shape == "bert-base" else None),
                "peak GB": row.get("peak_gb"),
                "x peer's GB": _share(
                    row.get("peak_gb"), _memory(found, shape, method) if who == "ours" and members == 1 else None
                ),
                "measured at": row.get("commit"),
            }
        )
    write_results(
        "speed_h100",
        "Training speed on one H100",
        [*rows, *steps(found), *kernels(found)],
        text=TEXT.format(notes=notes),
        about=json.loads(about.read_text()),
    )


def _share(own: float | None, whole: float | None) -> float | None:
    return round(own / whole, 2) if own and whole else None


def _memory(found: dict[str, dict[str, Any]], shape: str, method: str) -> float | None:
    """Of the most frugal peer."""
    peers = [
        row["peak_gb"]
        for job, row in found.items()
        if job.split(":")[1:3] == [shape, method] and job[:4] in ("peft", "adap")
    ]
    return min(peers, default=None)


def steps(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What a step's time goes into, and its share of the whole."""
    rows = []
    for job, row in found.items():
        if not job.startswith("where:"):
            continue
        _, shape, method, members = job.split(":")
        parts = {name: value for name, value in row.items() if name not in ("job", "whole", "commit") and value}
        for name, value in sorted(parts.items(), key=lambda pair: -pair[1]):
            share = round(value / row["whole"], 3)
            rows.append(
                {"job": "a step's parts", "step of": f"{shape}, {method}, {members} at once", "part": name, "ms": value}
                | {"share": share, "measured at": row.get("commit")}
            )
    return rows


def kernels(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The roofline of each kernel of ours: all are bound by memory, so the floor is their bytes at the speed of a copy."""
    rows = []
    for job, row in found.items():
        if job.startswith("kernel:"):
            for way in ("", "_forward", "_backward"):
                if f"ours{way}_us" not in row:
                    continue
                ours, plain, least = (row[f"{who}{way}_us"] for who in ("ours", "plain", "floor"))
                rows.append(
                    {"job": "kernels", "kernel": job[7:] + way.replace("_", ", "), "us": ours, "plain torch, us": plain}
                    | {"floor, us": least}
                    | {"x plain": round(plain / ours, 2), "of the floor": round(least / ours, 2)}
                    | {"copy TB/s": row["copy_tb_per_second"], "measured at": row.get("commit")}
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--about", type=Path, required=True, help="a json file with the measuring machine's facts")
    parser.add_argument("--notes", type=Path, help="what the page says of the run")
    arguments = parser.parse_args()
    report(arguments.runs, arguments.about, arguments.notes.read_text() if arguments.notes else "")


if __name__ == "__main__":
    main()
