"""What the studies share: jobs for a pool of worker processes, one json line a finished run, the choice on the validation split.

A study gives `todo(done)`, the jobs that can be started now in the order in which they matter, and `begin(arguments)`, which a
worker calls once to load what all jobs need; it returns the function that does a job. Both must be found by import.
"""

import argparse
import json
import multiprocessing as mp
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty
from typing import Any

from benchmarks.results import machine

Run = dict[str, Any]
"""A finished run: "job", the list that names it, and what it found."""
Job = tuple[Any, ...]
"""What names a run; strings and numbers, as they come back from JSON."""
Todo = Callable[[list[Run]], Sequence[Job]]
Begin = Callable[[argparse.Namespace], Callable[[Job], Run]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `run`."""
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=2, help="processes that share the device")
    parser.add_argument("--runs", type=Path, required=True, help="one json line a finished run; read, then appended to")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no job after this")


def run_jobs(arguments: argparse.Namespace, todo: Todo, begin: Begin) -> None:
    """Does what is to do, as far as `--seconds` go. A job that fails is reported, and not tried again in this call."""
    done = read(arguments.runs)
    context = mp.get_context("spawn")
    jobs, results = context.Queue(), context.Queue()
    workers = [
        context.Process(target=_work, args=(jobs, results, begin, arguments), daemon=True)
        for _ in range(arguments.workers)
    ]
    for worker in workers:
        worker.start()
    about, start = machine(), time.monotonic()
    waiting: set[Job] = set()
    failed: set[Job] = set()
    while True:
        finished = {tuple(run["job"]) for run in done}
        for job in todo(done):
            if len(waiting) >= arguments.workers or time.monotonic() - start > arguments.seconds:
                break
            if job not in waiting | failed | finished:
                waiting.add(job)
                jobs.put(job)
        if not waiting:
            break
        try:
            job, result = results.get(timeout=5)
        except Empty:
            if not any(worker.is_alive() for worker in workers):
                raise SystemExit("every worker has died; see its message above") from None
            continue
        waiting.discard(job)
        passed = f"{time.monotonic() - start:6.0f} s  {len(done):4d} done  {' '.join(map(str, job))}"
        if "failed" in result:
            failed.add(job)
            print(f"{passed}: failed\n{result['failed']}", flush=True)
            continue
        run = {"job": list(job), **result, "about": about}
        done.append(run)
        with arguments.runs.open("a") as file:
            file.write(json.dumps(run) + "\n")
        shown = {k: round(v, 4) for k, v in result.items() if isinstance(v, float)}
        print(f"{passed}: {shown}", flush=True)
    for _ in workers:
        jobs.put(None)
    for worker in workers:
        worker.join(timeout=20)


def _work(jobs: Any, results: Any, begin: Begin, arguments: argparse.Namespace) -> None:
    """One process: what all jobs need once, then job after job."""
    import torch

    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    # Seen on an H100 with torch 2.11: cuDNN's attention fails now and then while decoding ("mha_graph.execute").
    torch.backends.cuda.enable_cudnn_sdp(False)
    one = begin(arguments)
    while (job := jobs.get()) is not None:
        try:
            results.put((job, one(job)))
        except Exception:  # noqa: BLE001 - whatever it was, the other jobs go on
            results.put((job, {"failed": traceback.format_exc()}))


def read(path: Path) -> list[Run]:
    """The finished runs; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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
