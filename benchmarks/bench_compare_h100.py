"""A comparison of 32 runs on one GPU: one pack of ours, and the same runs one after the other with Trainer and peft.

    python -m benchmarks.bench_compare_h100 ours  --data data/mrpc --out compare.jsonl
    python -m benchmarks.bench_compare_h100 peers --data data/mrpc --out compare.jsonl --seconds 100
    python -m benchmarks.bench_compare_h100 report compare.jsonl     # results/compare_h100.{json,md}

A run is a method at a learning rate with a seed: 4 x 4 x 2 of them, over MiniLM, on MRPC, each with 10 % warm-up and linear decay,
32 rows a step, a validation score after every epoch, and a score on the test split at its end. Both sides read the same token ids,
start from the same bf16 weights, and have the same head (on the pretrained pooler, dropout 0.1, at most 5e-3) and no dropout
inside the backbone. Ours also keep the best epoch's weights, write checkpoints and leave a task folder for each run; the peers
save nothing and are scored as they end.

`peers` times whole runs, one of each method and then others as long as time remains; what all 32 take is reckoned from these.
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.compare_h100_parts import PACKS, runs_of, write
from benchmarks.compare_h100_peers import peers
from benchmarks.compare_h100_report import report
from benchmarks.results import machine


class Clock:
    """Tells what the seconds of a pack went into, from what its runs report."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._mark, self._stepped = time.perf_counter(), False

    def member(self, name: str) -> "Clock":
        return self

    def say(self, line: str) -> None:
        if "plain path" in line or "do not fit" in line:
            print(line, flush=True)

    def start(self, total: int, done: int) -> None:
        self._lap("opening")

    def advance(self, step: int) -> None:
        self._lap("steps" if self._stepped else "first step")
        self._stepped = True

    def log(self, step: int, loss: float, tokens_per_second: float) -> None:
        self._lap("steps")

    def evaluated(self, step: int, metrics: dict[str, float], metric: str, best: bool) -> None:
        self._lap("validation")

    def stop(self) -> None:
        """A run's end lies between two of these: its folder, its picture, its test score."""
        self._lap("ends and test")

    def _lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._mark
        self._mark = now


def ours(arguments: argparse.Namespace) -> None:
    import torch

    from intarsia.workflow.pack import run_pack
    from intarsia.workflow.training import Trained

    for pack in arguments.packs:
        with tempfile.TemporaryDirectory() as folder:  # as the peers have a short run that is not counted
            warm = runs_of(arguments.data, PACKS[pack], Path(folder), 1, arguments.device, steps=2)
            run_pack([run for _, run in warm[::8]], score_test=True)
        with tempfile.TemporaryDirectory() as folder:
            made = runs_of(arguments.data, PACKS[pack], Path(folder), arguments.epochs, arguments.device)
            made = made[: arguments.members]
            begun, clock = time.perf_counter(), Clock()
            results = run_pack([run for _, run in made], score_test=True, report=clock)
            seconds = time.perf_counter() - begun
            clock.stop()
            for (facts, _), result in zip(made, results, strict=True):
                done = isinstance(result, Trained)
                scores = {split: found["accuracy"] for split, found in result.metrics.items()} if done else {}
                write(
                    arguments.out,
                    {"who": "ours", "pack": pack, **facts, **scores, "parameters": done and result.parameters},
                )
            peak = round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_available() else None
            failed = [result.message for result in results if not isinstance(result, Trained)]
        phases = {name: round(value, 1) for name, value in clock.phases.items()}
        found = {
            "about": machine(),
            "members": len(made),
            "seconds": round(seconds, 2),
            "phases": phases,
            "peak_gb": peak,
            "failed": failed,
        }
        write(arguments.out, {"who": "ours", "pack": pack, "epochs": arguments.epochs, **found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, call in (("ours", ours), ("peers", peers)):
        part = commands.add_parser(name)
        part.add_argument("--data", type=Path, required=True, help="a folder with train.tsv, dev.tsv, test.tsv")
        part.add_argument("--epochs", type=int, default=2)
        part.add_argument("--out", type=Path, required=True)
        part.add_argument("--device", default="auto")
        part.set_defaults(call=call)
        if name == "ours":
            part.add_argument("--packs", nargs="+", choices=PACKS, default=list(PACKS))
            part.add_argument("--members", type=int, default=32, help="the first of them, to try it")
        else:
            part.add_argument("--seconds", type=float, default=100.0, help="no run begins that would end later")
    part = commands.add_parser("report")
    part.add_argument("files", type=Path, nargs="+")
    part.set_defaults(call=report)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
