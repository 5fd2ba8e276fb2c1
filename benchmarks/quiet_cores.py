"""The processors that others disturb least at this moment: `python -m benchmarks.quiet_cores 2` prints two of them.

A rented machine's processors share cores with its neighbours', who come and go. Products in bf16 run for a moment on all processors
at once, then on the quickest of these in pairs; what a pair's slower one reaches decides.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from itertools import combinations

import torch

PROBE = 0.3
"""Seconds."""
CANDIDATES = 6
SIZES = (848, 384, 1536)
"""Of the product: MRPC's tokens, and MiniLM's widest layer."""


def rates(cores: Sequence[int], seconds: float) -> dict[int, float]:
    """TFLOP/s of each of them, all at once."""
    rows, reads, writes = SIZES
    x, weight = torch.randn(rows, reads).bfloat16(), torch.randn(writes, reads).bfloat16()
    found: dict[int, float] = {}
    together = threading.Barrier(len(cores))

    def run(core: int) -> None:
        os.sched_setaffinity(0, {core})  # of this thread
        torch.nn.functional.linear(x, weight)
        together.wait()
        count, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds:
            torch.nn.functional.linear(x, weight)
            count += 1
        found[core] = 2e-12 * count * rows * reads * writes / spent

    threads = [threading.Thread(target=run, args=(core,)) for core in cores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def quietest(count: int) -> list[int]:
    """So many of this process's processors."""
    torch.set_num_threads(1)
    there = sorted(os.sched_getaffinity(0))
    alone = rates(there, PROBE)
    best = sorted(there, key=lambda core: -alone[core])[: max(CANDIDATES, count)]
    groups = [list(group) for group in combinations(best, count)]
    return max(groups, key=lambda group: min(rates(group, PROBE / 3).values()))


if __name__ == "__main__":
    print(",".join(map(str, quietest(int(sys.argv[1])))))
