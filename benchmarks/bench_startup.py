"""Start-up and data: how long a user waits before anything happens. Every figure is a fresh process's, the smallest of a few.

    python -m benchmarks.bench_startup --data FOLDER_WITH_mrpc_AND_sst2

The first training step is seen from outside: the moment when the run's metrics.jsonl gets its first line. "Cold" and "warm" speak
of our own cache of tokens; Python's bytecode and the operating system's file cache are warm, as on any second start.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import table, write_results

COMMAND = [sys.executable, "-m", "intarsia.cli"]
TIMED = """
import time
{before}
began = time.perf_counter()
{measured}
print(time.perf_counter() - began)
"""
NO_TORCH = "import sys, intarsia; assert 'torch' not in sys.modules"
PHRASES = """
from intarsia.backbone import Backbone
from intarsia.data import DataSpec, encode, load_data
tokenizer = Backbone.load("embedded:minilm").tokenizer
rows = load_data(DataSpec(train={train!r}, validation={dev!r})).split("train")
assert len(rows) == 67349, len(rows)
"""


def wall(*command: str) -> float:
    """Seconds of a whole process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def inside(before: str, measured: str) -> float:
    """Seconds of a part of a process, in the environment that the command line makes for itself."""
    code = TIMED.format(before=before, measured=measured)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout.split()[-1])


def first_step(data: Path, cache: Path) -> float:
    """Seconds from the command to the end of the first training step."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        options = {"--backbone": "embedded:minilm", "--train": data / "train.tsv", "--validation": data / "dev.tsv"}
        options |= {"--text-columns": "sentence1,sentence2", "--label-column": "label", "--method": "adapter"}
        command = [*COMMAND, "train", *map(str, sum(options.items(), ())), "--max-steps", "20", "--out", str(out)]
        began, lines = time.perf_counter(), out / "metrics.jsonl"
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        run = subprocess.Popen(command, env={**os.environ, "INTARSIA_CACHE": str(cache)}, **quiet)
        try:
            while not (lines.exists() and lines.stat().st_size):
                if run.poll() is not None:
                    raise SystemExit(f"the run ended with status {run.returncode} before its first step")
                time.sleep(0.005)
            return time.perf_counter() - began
        finally:
            run.terminate()
            run.wait()


def cold_first_step(data: Path) -> float:
    with tempfile.TemporaryDirectory() as cache:
        return first_step(data, Path(cache))


def measurements(data: Path, cache: Path) -> list[tuple[str, float, Callable[[], float]]]:
    """What is measured, its goal in seconds, and how."""
    sst2, mrpc = data / "sst2", data / "mrpc"
    phrases = PHRASES.format(train=str(sst2 / "train_phrases.tsv.gz"), dev=str(sst2 / "dev.tsv"))
    load = 'Backbone.load("embedded:smollm2")'
    imported = "from intarsia.backbone import Backbone\nimport transformers\nBackbone.load('embedded:smollm2')"
    return [
        ("intarsia --help", 0.3, lambda: wall(*COMMAND, "--help")),
        ("import intarsia, without torch", 0.3, lambda: wall(sys.executable, "-c", NO_TORCH)),
        ("command to first step, no token cache", 6.0, lambda: cold_first_step(mrpc)),
        ("command to first step, tokens cached", 6.0, lambda: first_step(mrpc, cache)),
        (
            "tokens of SST-2's 67,349 phrases",
            3.0,
            lambda: inside(phrases, 'encode(rows, tokenizer, 256, "classification")'),
        ),
        ("SmolLM2 from its local cache", 2.0, lambda: inside(imported, load)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with mrpc/ and sst2/, as their makers' TSVs")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for what, goal, measure in measurements(args.data, Path(cache)):
            measure()  # fills the caches, ours and the system's
            seconds = sorted(measure() for _ in range(args.repeats))
            rows.append({"what": what, "seconds": seconds[0], "slowest": seconds[-1], "goal": goal})
            print(rows[-1], file=sys.stderr, flush=True)
    text = (
        f"The smallest of {args.repeats} fresh processes, after one that fills the file caches. The first step is of "
        "`intarsia train` on MRPC with `embedded:minilm` and an adapter: start of the process, imports (torch and transformers "
        "take most of it), data, backbone, one step of 16 rows. Tokens and SmolLM2: that part alone, inside a process that has "
        "imported the libraries; tokenizers on one thread, as the command line sets it."
    )
    print(table(rows))
    write_results("startup", "Start-up and data: seconds before anything happens", rows, text=text)


if __name__ == "__main__":
    main()
