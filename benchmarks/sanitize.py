"""The Triton kernels under NVIDIA's compute-sanitizer, on a GPU.

    python -m benchmarks.sanitize

Runs the kernels' tests, forward and backward, with every tensor in an allocation of its own (torch's allocator would hide what is
read a little beyond one): memcheck for what is read or written out of bounds or not aligned, racecheck for shared memory. (What is
left unwritten those tests see themselves: fresh memory is nan there.) Writes results/sanitize.{json,md}; exit status 1 where
anything was found.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

from benchmarks.results import write_results

TEXT = (__doc__ or "").split("\n\n")[2]
TOOLS = {"memcheck": [], "racecheck": ["--racecheck-report", "analysis"]}
SUITES = {
    "attention": ["tests/ops/test_ops_kernels.py", "-k", "short_segments"],
    "bottlenecks": ["tests/ops/test_ops_kernels.py", "-k", "bottleneck"],
    "other kernels": ["tests/ops/test_ops_kernels.py", "-k", "not short_segments and not bottleneck"],
    "kernels by address": ["tests/ops/test_ops_addressed.py"],
    "rotary": ["tests/ops/test_ops_rotary.py"],
    "kernels by address, few sizes": ["tests/ops/test_ops_addressed.py", "-k", "bfloat16 and not 40"],
    "other kernels, few sizes": ["tests/ops/test_ops_kernels.py", "-k", "bfloat16 and (2-1-64 or 96-48 or 2-33-96)"],
    "a bank's rows": ["tests/bank/test_bank_graphs.py", "-k", "kernels_find"],
}
GRAPHS = "a bank's rows"
"""Which wants graphs, and torch makes none without its allocator: the failed call of CUDA is no error of a kernel."""
JOBS = (
    *(
        ("memcheck", suite)
        for suite in ("attention", "bottlenecks", "other kernels", "kernels by address", "rotary", GRAPHS)
    ),
    *(("racecheck", suite) for suite in ("kernels by address, few sizes", "other kernels, few sizes")),
)
"""racecheck takes minutes for what memcheck does in one."""


def run(tool: str, suite: str, limit: float) -> dict[str, object]:
    """One tool over one suite."""
    quiet = ["--report-api-errors", "no"] if suite == GRAPHS else []
    command = ["compute-sanitizer", "--tool", tool, *TOOLS[tool], *quiet, "--error-exitcode", "99"]
    command += [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:benchmark", *SUITES[suite]]
    start = time.perf_counter()
    try:
        made = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=limit,
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "HF_HUB_OFFLINE": "1"},
        )
    except subprocess.TimeoutExpired:
        return {"tool": tool, "suite": suite, "outcome": f"not done within {limit:.0f} s"}
    said = made.stdout + made.stderr
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", said)
    tests = re.findall(r"(\d+ (?:passed|failed|skipped).*?) in ", said)
    if made.returncode:
        print(said[-6000:], flush=True)
    if made.returncode not in (0, 99):
        found = []
    return {
        "tool": tool,
        "suite": suite,
        "outcome": found[-1] if found else f"the tests did not run, exit status {made.returncode}",
        "tests": tests[-1] if tests else "not told",
        "exit status": made.returncode,
        "seconds": round(time.perf_counter() - start),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=400, help="seconds of each")
    given = parser.parse_args()
    rows = []
    # Beside each other: most of their time is Triton's compiler and Python.
    with ThreadPoolExecutor(len(JOBS)) as pool:
        for done in as_completed([pool.submit(run, tool, suite, given.limit) for tool, suite in JOBS]):
            rows.append(done.result())
            print(rows[-1], flush=True)
            write_results("sanitize", "The kernels under compute-sanitizer", rows, text=TEXT)
    return int(any(row.get("exit status") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
