"""Run by test_resume: trains in a child process, kills it with SIGKILL again and again, and resumes until it is done.

Usage: kill_driver.py OUT OPTIMIZER... Prints how many kills landed in the run of each optimizer, whose folder OUT/OPTIMIZER is.
Children are forked: each starts at once.
"""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from train_standins import TinySource, new, settings, validation

from intarsia.training import fit


class SlowSource(TinySource):
    def load(self, key):
        time.sleep(0.008)  # the whole run takes a second, so that some kills land within it on a fast machine, too
        return super().load(key)


def plan(optimizer: str):
    return settings(optimizer=optimizer, epochs=12, accumulate=2, checkpoint_every=7, evaluate_every=9, seed=3)


def run(out: Path, optimizer: str, *, resume: bool) -> None:
    bank, task = new()
    fit(bank, task, SlowSource(90), validation(), plan(optimizer), out, resume=resume)


def main() -> None:
    torch.set_num_threads(1)
    for seed, optimizer in enumerate(sys.argv[2:]):
        # So that no child spends its short life importing: the parent has done it all once.
        with tempfile.TemporaryDirectory() as folder:
            fit(*new(), TinySource(), validation(), settings(optimizer=optimizer), Path(folder))
        print(killed(Path(sys.argv[1]) / optimizer, optimizer, random.Random(seed)))


def killed(out: Path, optimizer: str, moments: random.Random) -> int:
    """Trains to the end. How often that was killed."""
    kills, resume = 0, False
    while True:
        child = os.fork()
        if child == 0:
            run(out, optimizer, resume=resume)
            os._exit(0)
        # The first kills come early; later ones leave more time, or a slow machine would never get to the end.
        time.sleep(moments.uniform(0.02, 0.2 * (kills + 1)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            break
        kills += 1
        resume = out.exists() and any(out.iterdir())
    # A child that failed rather than finished: once more, to show why.
    run(out, optimizer, resume=True)
    return kills


if __name__ == "__main__":
    main()
