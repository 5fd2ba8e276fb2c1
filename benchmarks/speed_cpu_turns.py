"""Contenders that take turns on the same processors: a part of bench_speed_cpu.

A machine's neighbours come and go within seconds, so that two runs one after the other are not of the same machine. Here all
processes are there; each waits until it is its turn, takes some steps, and waits again (`Clock`). The time of these steps is its
own.
"""

import argparse
import contextlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench_speed_cpu import child, quietest

LOOKS = 5
"""Cycles after which the processors that are disturbed least are looked for again."""


class Contender:
    """A process that waits for its turn."""

    def __init__(self, job: str, args: argparse.Namespace, place: Sequence[int]) -> None:
        self.job, self.row = job, {}
        command, env = child(job, args, place)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )

    def wait(self) -> None:
        """Until its turn ends; then it may have its result, or have failed."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        for line in self.process.stdout:
            if line.startswith("TURN"):
                return
            if line.startswith("RESULT "):
                (self.row,) = json.loads(line[7:])
                self.process.communicate()  # what it does at its end is not to be beside the next one's turn
                return
        self.row = {"failed": (self.process.stderr.read().strip().splitlines() or ["?"])[-1][:300]}

    def go(self) -> None:
        """Its turn, unless it is at an end."""
        if not self.row:
            assert self.process.stdin is not None
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            self.wait()

    def move(self, place: Sequence[int]) -> None:
        """All its threads, to these processors."""
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(int(thread.name), place)


def in_turns(jobs: Sequence[str], args: argparse.Namespace) -> None:
    """Appends what each job gives to the file. They start beside each other, each on processors of its own if there are enough."""
    there = sorted(os.sched_getaffinity(0))
    size = args.cores or len(there)
    places = [there[at : at + size] for at in range(0, len(there) - size + 1, size)]
    contenders = []
    for begin in range(0, len(jobs), len(places)):
        some = [Contender(job, args, place) for job, place in zip(jobs[begin:], places, strict=False)]
        for one in some:
            one.wait()
        contenders += some
    cycle = 0
    while any(not one.row for one in contenders):
        if cycle % LOOKS == 0:
            place = quietest(size) if args.quietest else places[-1]
            for one in contenders:
                if not one.row:
                    one.move(place)
        for one in contenders if cycle % 2 == 0 else contenders[::-1]:
            one.go()
        cycle += 1
    from benchmarks.results import (
        machine,
    )  # only now, since it imports torch: a child's peak memory starts at its parent's

    commit = machine()["commit"]
    for one in contenders:
        row: dict[str, Any] = {"job": one.job, "cores": size, **one.row, "commit": commit, "host": args.host}
        print(json.dumps(row), flush=True)
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
