"""What the studies share: jobs for a pool of worker processes, one json line a finished run, the choice on the validation split.

A study gives `todo(done)`, what can be started now in the order in which it matters, and `begin(arguments)`, which a worker calls
once to load what all jobs need; it returns the function that does them. Both must be found by import. Jobs come in tuples, which a
worker does together (studies.members): often of one.
"""

import argparse
import gzip
import json
import multiprocessing as mp
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from queue import Empty
from typing import Any

from benchmarks.results import machine

Run = dict[str, Any]
"""A finished run: "job", the list that names it, and what it found."""
Job = tuple[Any, ...]
"""What names a run; strings and numbers, as they come back from JSON."""
Todo = Callable[[list[Run]], Sequence[tuple[Job, ...]]]
Begin = Callable[[argparse.Namespace], Callable[[tuple[Job, ...]], Iterable[tuple[Job, Run]]]]
"""The function gives each job's run as soon as it is known."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `run`."""
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=2, help="processes that share the device")
    parser.add_argument("--runs", type=Path, required=True, help="one json line a finished run; read, then appended to")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no job after this")


def run_jobs(arguments: argparse.Namespace, todo: Todo, begin: Begin) -> None:
    """Does what is to do, as far as `--seconds` go. Jobs that fail are reported, and not tried again in this call."""
    done = read(arguments.runs)
    context = mp.get_context("spawn")
    jobs, results = context.Queue(), context.Queue()

    def worker() -> Any:
        process = context.Process(target=_work, args=(jobs, results, begin, arguments), daemon=True)
        process.start()
        return process

    workers = [worker() for _ in range(arguments.workers)]
    about, start = machine(), time.monotonic()
    waiting: set[tuple[Job, ...]] = set()
    over: set[Job] = {tuple(run["job"]) for run in done}
    while True:
        busy = {job for pack in waiting for job in pack}
        for whole in todo(done):
            if len(waiting) >= arguments.workers or time.monotonic() - start > arguments.seconds:
                break
            if pack := tuple(job for job in whole if job not in busy | over):
                waiting.add(pack)
                busy |= set(pack)
                jobs.put(pack)
        if not waiting:
            break
        try:
            pack, job, result, trouble = results.get(timeout=5)
        except Empty:
            if not any(process.is_alive() for process in workers):
                raise SystemExit("every worker has died; see its message above") from None
            continue
        passed = f"{time.monotonic() - start:6.0f} s  {len(done):4d} done  "
        if job is None:
            waiting.discard(pack)
            over |= set(pack)
            if trouble:
                print(f"{passed}{pack}: failed\n{trouble}", flush=True)
                # After an error of the device a process is good for nothing.
                workers.append(worker())
            continue
        run = {"job": list(job), **result, "about": about}
        done.append(run)
        with arguments.runs.open("a") as file:
            file.write(json.dumps(run) + "\n")
        shown = {k: round(v, 4) for k, v in result.items() if isinstance(v, float)}
        print(f"{passed}{' '.join(map(str, job))}: {shown}", flush=True)
    for _ in workers:
        jobs.put(None)
    for process in workers:
        process.join(timeout=20)


def alone(jobs: Sequence[Job]) -> list[tuple[Job, ...]]:
    """Each job by itself."""
    return [(job,) for job in jobs]


def _work(jobs: Any, results: Any, begin: Begin, arguments: argparse.Namespace) -> None:
    """One process: what all jobs need once, then job after job, until one fails."""
    import torch

    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    together = begin(arguments)
    while (pack := jobs.get()) is not None:
        try:
            for job, run in together(pack):
                results.put((pack, job, run, ""))
        except Exception:  # noqa: BLE001 - whatever it was, the other jobs go on, in another process
            results.put((pack, None, None, traceback.format_exc()))
            return
        results.put((pack, None, None, ""))


def read(*paths: Path) -> list[Run]:
    """The finished runs, each job's once; none where there is no such file. Files that end in .gz are compressed."""
    found: dict[Job, Run] = {}
    for path in paths:
        if path.exists():
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
                for line in file:
                    run = json.loads(line)
                    found.setdefault(tuple(run["job"]), run)
    return list(found.values())


def keep(runs: Sequence[Run], path: Path) -> None:
    """Writes the runs, one json line each; compressed, to the same bytes each time, where the name ends in .gz."""
    lines = "".join(json.dumps(run) + "\n" for run in runs).encode()
    path.write_bytes(gzip.compress(lines, mtime=0) if path.suffix == ".gz" else lines)


def ranked(done: Sequence[Run], what: Sequence[Any], rates: Sequence[float], seeds: Sequence[int]) -> list[float]:
    """The learning rates from best to worst mean validation score; [] while one of (*what, rate, seed) is missing.

    The validation score of a run is its "validation", larger is better.
    """
    found = {tuple(run["job"]): run["validation"] for run in done if "validation" in run}
    means = {}
    for rate in rates:
        scores = [found.get((*what, rate, seed)) for seed in seeds]
        if None in scores:
            return []
        means[rate] = statistics.mean(scores)
    return sorted(means, key=lambda rate: -means[rate])


def runs_of(done: Sequence[Run], what: Sequence[Any], rate: float) -> list[Run]:
    """The runs of one learning rate, whatever their seed."""
    return [run for run in done if run["job"][:-1] == [*what, rate]]


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None of a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
