"""Training speed on a CPU beside peft and adapters under Hugging Face Trainer, packs, trunk reuse; and the quality of each.

    python -m benchmarks.bench_speed_cpu --data FOLDER_WITH_MRPC_TSVS --out runs.jsonl     # all jobs but quality
    python -m benchmarks.bench_speed_cpu --data ... --out quality.jsonl --jobs quality --device cuda --parallel 14
    python -m benchmarks.bench_speed_cpu --report runs.jsonl quality.jsonl                 # results/speed_cpu.{json,md}

MRPC's training pairs over MiniLM, 16 rows a step, at most 128 tokens. Each measurement is a process of its own, so that its peak
memory is its own; the order of the jobs turns round at each round, so that a machine that warms up or gets busy favours none.
Speed is real tokens a second over the timed steps: padding counts for nothing; loading, tokenising and warm-up are not timed.
With `--turn 4` all jobs are there at once, and one after the other takes four steps while the others wait, on the same processors:
what neighbours of the machine disturb they disturb for all.

    ours:METHOD:SETTINGS           default; first-token: a head that reads the first token's state, as transformers' own and so the
                                   peers' do (ours reads the mean); or a dtype by name
    peft:METHOD:SETTINGS           defaults: Trainer's own. best: bf16 autocast and rows of like length in a batch. by-length: the
    adapters:METHOD:SETTINGS       latter alone. quiet: best, and no dropout in the backbone either, as ours
    floor:DTYPE                    the products with the trunk's matrices alone, forward and backward
    pack:MEMBERS                   so many adapters at once; all their steps count
    reuse:WHERE                    all, top-half, top-third, head: where modules are; the second epoch over the same 640 rows
    quality:...                    three epochs, accuracy of the last weights: quality:ours:METHOD[:first-token] (five seeds in one
                                   pack), or quality:peft:METHOD:SETTINGS:SEED. `best` has a rate that suits the method, too
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

from benchmarks.speed_cpu_parts import Clock, busy_elsewhere, minilm

OURS = ("adapter", "lora", "prefix", "prompt")
PEERS = [*(("peft", m) for m in ("lora", "prefix", "prompt")), *(("adapters", m) for m in ("houlsby", "pfeiffer"))]
SPEED = [
    *(f"ours:{method}:{settings}" for settings in ("default", "first-token") for method in OURS),
    "ours:lora:float32",
    *(f"{who}:{method}:{settings}" for who, method in PEERS for settings in ("defaults", "best")),
    *(f"peft:lora:{settings}" for settings in ("quiet", "by-length")),
    *(f"floor:{dtype}" for dtype in ("bfloat16", "float32")),
    *(f"pack:{members}" for members in (1, 4, 8)),
    *(f"reuse:{where}" for where in ("all", "top-half", "top-third", "head")),
]
SEEDS = 5
QUALITY = [
    *(f"quality:ours:{method}{more}" for more in ("", ":first-token") for method in OURS),
    *(f"quality:{who}:{m}:best:{seed}" for seed in range(SEEDS) for who, m in PEERS),
    *(f"quality:{who}:{m}:defaults:{seed}" for seed in range(3) for who, m in PEERS),  # a constant answer, all of them
]
QUIET = 0.05
"""Share of the machine that other processes may use in a measurement that counts."""
PEERS_NEED = ["torch==2.13.0", "adapters==1.3.0", "transformers==4.57.6", "accelerate==1.15.0"]


# -- in a measuring process --------------------------------------------------------------------------------------------


def measure(job: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One job, in this process."""
    kind, *what = job.split(":")
    if kind == "quality":
        who, *what = what
        if who == "ours":
            from benchmarks import speed_cpu_ours

            return speed_cpu_ours.quality(what[0], what[1:] == ["first-token"], SEEDS, args.data, args.device)
        from benchmarks import speed_cpu_peers

        return speed_cpu_peers.quality(who, what[0], what[1], int(what[2]), args.data, args.model, args.device)
    clock = Clock(args.warmup, args.steps, args.turn)
    if kind in ("peft", "adapters"):
        from benchmarks import speed_cpu_peers

        speed_cpu_peers.speed(kind, what[0], what[1], args.data, args.model, clock)
        return [clock.result()]
    from benchmarks import speed_cpu_ours as product

    if kind == "ours":
        first = what[1] == "first-token"
        product.speed(
            what[0], "auto" if first or what[1] == "default" else what[1], args.data, clock, first_token=first
        )
    elif kind == "floor":
        product.floor(what[0], clock)
    elif kind == "pack":
        clock = Clock(16, 8 * -(-args.steps // 8))
        product.pack(product.BottleneckAdapter(), int(what[0]), "auto", args.data, clock)
    else:
        clock = Clock(40, 40)  # an epoch of 640 rows, and another
        product.reuse(what[0], args.data, clock)
    return [clock.result()]


# -- the processes -----------------------------------------------------------------------------------------------------


def place_of_peers(folder: Path) -> tuple[str, dict[str, str]]:
    """The interpreter and variables with which adapters runs: a virtual environment, made at first use; or a folder of packages
    that is put in front of this interpreter's own."""
    if (folder / "adapters").is_dir():
        return sys.executable, {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS_NEED], check=True)
    return str(python), {}


def places_of(args: argparse.Namespace) -> "Queue[list[int]]":
    """The processors that each of the processes that run at a time has to itself: the last of those that are there."""
    there, found = sorted(os.sched_getaffinity(0)), Queue()
    size = args.cores or len(there)
    if size * (args.parallel if args.cores else 1) > len(there):
        raise SystemExit(f"{args.parallel} places of {size} processors are more than the {len(there)} that are there")
    for place in range(args.parallel):
        last = len(there) - (place * size if args.cores else 0)
        found.put(there[last - size : last])
    return found


def run_child(job: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One measurement in a fresh process, on a place of its own; the line that says so is its result."""
    place = args.places.get()
    try:
        return on_place(job, args, place)
    finally:
        args.places.put(place)


def on_place(job: str, args: argparse.Namespace, place: Sequence[object]) -> list[dict[str, Any]]:
    """One measurement on these processors."""
    if args.quietest:
        place = quietest(args.cores)
    command, env = child(job, args, place)
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=args.limit)
    except subprocess.TimeoutExpired:
        return [{"failed": f"took more than {args.limit:g} s"}]
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    return json.loads(line[7:]) if line else [{"failed": (done.stderr.strip().splitlines() or ["?"])[-1][:300]}]


def quietest(count: int) -> list[int]:
    """So many processors; in a process of its own, since this one stays without torch."""
    command = [sys.executable, "-m", "benchmarks.quiet_cores", str(count)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(core) for core in said.strip().split(",")]


def child(job: str, args: argparse.Namespace, place: Sequence[object]) -> tuple[list[str], dict[str, str]]:
    """The command of a measuring process on these processors, and its environment."""
    python, more = place_of_peers(args.peers) if "adapters:" in job else (sys.executable, {})
    command = ["taskset", "-c", ",".join(map(str, place))] if args.cores else []
    command += [
        python,
        "-m",
        "benchmarks.bench_speed_cpu",
        "--job",
        job,
        "--data",
        str(args.data),
        "--turn",
        str(args.turn),
    ]
    command += ["--steps", str(args.steps), "--warmup", str(args.warmup), "--device", args.device, "--model", minilm()]
    env = {k: v for k, v in os.environ.items() if (args.parallel > 1 and not args.cores) or k != "OMP_NUM_THREADS"}
    return command, env | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | more


def wait_for_quiet(limit: float) -> None:
    """Until others leave the machine alone for a second, or so many seconds have passed."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < limit:
        before = busy_elsewhere()
        time.sleep(1)
        if busy_elsewhere() - before < QUIET * (os.cpu_count() or 1):
            return


def one(job: str, args: argparse.Namespace) -> None:
    """Appends what a job gives to the file: the first of some attempts that had the machine to itself, else the quietest."""
    begun, attempts = time.perf_counter(), []
    while len(attempts) < args.attempts:
        wait_for_quiet(0 if job.startswith("quality:") else args.wait)
        attempts.append(run_child(job, args))
        if attempts[-1][0].get("others", 0) <= QUIET:
            break
    found = min(attempts, key=lambda rows: rows[0].get("others", 0))
    for row in found:
        row = {"job": job, **row, "attempts": len(attempts)}
        print(f"{time.perf_counter() - begun:5.0f} s  {json.dumps(row)}", flush=True)
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def asked(names: Iterable[str]) -> list[str]:
    """Jobs by name or by what they begin with."""
    known = [*SPEED, *QUALITY]
    return [job for name in names for job in ([job for job in known if job.startswith(name)] or [name])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with MRPC's train.tsv, dev.tsv and test.tsv")
    parser.add_argument("--jobs", nargs="+", default=SPEED, help="names, or beginnings of names")
    parser.add_argument("--out", type=Path, help="measurements are appended here, a line each")
    parser.add_argument("--steps", type=int, default=32, help="timed steps")
    parser.add_argument("--warmup", type=int, default=8, help="steps before them")
    parser.add_argument("--rounds", type=int, default=2, help="of the jobs that are not quality")
    parser.add_argument("--attempts", type=int, default=3, help="of each measurement, until the machine was quiet")
    parser.add_argument(
        "--wait", type=float, default=30.0, help="at most so many seconds for a quiet machine, before each"
    )
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which a measurement is given up")
    parser.add_argument("--device", default="cpu", help="of quality jobs")
    parser.add_argument("--parallel", type=int, default=1, help="processes at a time; for speed, with --cores")
    parser.add_argument("--cores", type=int, help="processors of each process, which no other has; default: all")
    parser.add_argument(
        "--quietest", action="store_true", help="those --cores that neighbours use least, found before each measurement"
    )
    parser.add_argument(
        "--turn",
        type=int,
        default=0,
        help="steps that each job takes before it is the next one's turn; all are there at once",
    )
    parser.add_argument("--host", type=int, default=1, help="its number among those of the page, of jobs in turn")
    parser.add_argument("--peers", type=Path, default=Path(".peers"), help="where adapters is, or is to be installed")
    parser.add_argument("--report", type=Path, nargs="+", help="write results/NAME from these files")
    parser.add_argument("--name", default="speed_cpu", help="of the page: speed_cpu, or speed_cpu_amx")
    for hidden in ("--job", "--model"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print("RESULT " + json.dumps(measure(args.job, args)), flush=True)
        return
    if args.report:
        from benchmarks.speed_cpu_report import report

        report(args.report, args.name)
        return
    if not (args.data and args.out):
        parser.error("give --data and --out, or --report")
    jobs, args.places = asked(args.jobs), places_of(args)
    if args.turn:
        from benchmarks.speed_cpu_turns import in_turns

        in_turns(jobs, args)
    for turn in range(0 if args.turn else args.rounds):
        again = [job for job in jobs if turn == 0 or not job.startswith("quality:")]
        with ThreadPoolExecutor(args.parallel) as pool:
            list(pool.map(lambda job: one(job, args), again if turn % 2 == 0 else again[::-1]))
    # Only now: on Linux a child's peak memory starts at its parent's, so the parent stays without torch until the end.
    from benchmarks.results import machine

    with args.out.open("a") as file:
        file.write(json.dumps({"about": machine()}) + "\n")


if __name__ == "__main__":
    main()
