"""A roofline of the kernels in C, within steps of training: MRPC over MiniLM on a CPU with AMX.

    python -m benchmarks.bench_kernels_cpu --data DIR --cores 2      # writes results/kernels_cpu.{json,md}

Each call of a kernel is timed where it happens. Between steps the processors multiply tiles that are in their registers, for a
moment: neighbours take AMX away and give it back within seconds, so that is what there was to be had at that time.
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bench_speed_cpu import quietest
from benchmarks.results import write_results
from benchmarks.speed_cpu_parts import Clock

METHODS = ("lora", "adapter", "prefix", "prompt")
WARMUP, TILES, FLOP = 30, 4000, 2 * 4 * 16 * 16 * 32
"""Steps; products of four tiles a look; what one such is."""
COPIED = 1 << 28
"""Bytes, of which no cache holds a part that matters."""
TEXT = """Per step of 16 rows (`tokens` of them real), heads that read the first token. `GFLOP`: with the sizes that are multiplied,
32 where a LoRA is 8 wide. `MB`: each operand read or written once. `floor ms`: the larger of GFLOP at the processors' peak and MB
at the memory's rate; the peak is the middle of looks between the steps (registers only), the rate that of a long copy on as many
threads. Most operands are in caches, so the first is the floor that counts. `ms`: the middle over the steps, `least`: the least.

`step`: all of it; `kernels`: the sum of the kernels'; `rest`: Python, torch's dispatcher, and torch's own small operations.

A step is at 15 to 18 % of its floor in the middle. Where the rest goes:
- A fifth to a third of a step is not in kernels: Python and torch between some hundred calls, on one thread.
- Products are at 20 to 42 % of the peak. The peak is of tiles that never leave their registers; products read theirs from the
  second cache, write activations or slopes along (those are the lowest), and end with the slower of two threads: neighbours take a
  core's units and caches away call by call. `least` is of short rows, too, since batches are of like length, so it is no kernel's
  best.
- Attention is the furthest from its floor (0.11 to 0.16), which counts its products alone. Its time is softmax, layouts and
  roundings (see [attention_cpu.md](attention_cpu.md)); queries and keys are filled up to multiples of 32.
- Bottlenecks are narrow, so they read and write all of their rows for few operations; norms are at 0.5 to 0.72 of a copy's rate.
"""


class Call(NamedTuple):
    """What a kernel's call did."""

    kernel: str
    flop: float
    bytes: float


def described(function: str, shape: ctypes.Structure, arguments: Sequence[object]) -> Call:
    """shape: as the kernel's C file has it."""

    def size(name: str) -> int:
        return int(getattr(shape, name))

    if function == "multiply":
        rows, reads, writes = size("rows"), size("reads"), size("writes")
        slopes, values = arguments[3] is not None, arguments[5] is not None
        moved = rows * reads + reads * writes + rows * writes * (2 if slopes or values else 1)
        how = " and slopes" if slopes else " and activation" if values else ""
        return Call(f"product {reads} to {writes}{how}", 2.0 * rows * reads * writes, 2.0 * moved)
    if function.startswith("attention"):
        heads, queries, keys, width = size("rows") * size("heads"), size("queries"), size("keys"), size("width")
        backward = function.endswith("backward")
        moved = heads * width * ((2 * queries + 2 * keys) * (2 if backward else 1) - (queries if backward else 0))
        return Call(
            function.replace("_", " "), 2.0 * heads * queries * keys * width * (5 if backward else 2), 2.0 * moved
        )
    if function.startswith("bottleneck"):
        rows, across = size("rows"), size("reads") + size("writes")
        narrow = -(-size("width") // 32) * 32
        backward = function.endswith("backward")
        more = size("reads") if backward else 0 if size("same") else size("writes")  # an adapter's x is its y
        moved = rows * (across + more)
        return Call(function.replace("_", " "), 2.0 * rows * narrow * across * (2 if backward else 1), 2.0 * moved)
    if function.startswith("norm"):
        return Call(function.replace("_", " "), 0.0, 2.0 * size("rows") * size("width") * 4)
    return Call(function.replace("_", " "), 0.0, 2.0 * size("count") * 2)


class Seen:
    """What the kernels did in one step."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.flop: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.span = self.peak = 0.0


@contextmanager
def timed(take: Callable[[Call, float], None]) -> Iterator[None]:
    """Tells of each call of a kernel and its seconds."""
    from intarsia.ops.native.compiled import Library

    run = Library.run

    def told(self: Library, function: str, shape: ctypes.Structure, *arguments: object) -> None:
        began = time.perf_counter()
        run(self, function, shape, *arguments)
        if function != "pack":  # which a trunk is once
            take(described(function, shape, arguments), time.perf_counter() - began)

    Library.run = told  # type: ignore[method-assign]
    try:
        yield
    finally:
        Library.run = run  # type: ignore[method-assign]


def peak_kernel(folder: Path) -> Callable[[], float]:
    """FLOP/s of all threads, each time that it is called."""
    import torch

    from intarsia.ops.native import compiled

    native, source = Path(compiled.__file__).parent, Path(__file__).with_name("peak_cpu.c")
    command = ["gcc", *compiled.FLAGS, *compiled.SHARED, f"-I{native}", str(source), "-o", str(folder / "peak.so")]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "peak.so"))
    assert library.ready()

    def rate() -> float:
        began = time.perf_counter()
        library.peak(ctypes.c_long(TILES))
        return TILES * FLOP * torch.get_num_threads() / (time.perf_counter() - began)

    return rate


def memory_rate() -> float:
    """Bytes a second that a copy reads and writes."""
    import torch

    first, second = torch.ones(2, COPIED // 4, dtype=torch.float32)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        second.copy_(first)
        times.append(time.perf_counter() - began)
    return 2 * COPIED / min(times)


class Watch(Clock):
    """Keeps what the kernels did in each timed step, and looks at the processors' peak after it."""

    def __init__(self, steps: int, peak: Callable[[], float]) -> None:
        super().__init__(WARMUP, steps)
        self.peak, self.now, self.kept = peak, Seen(), list[Seen]()

    def take(self, call: Call, seconds: float) -> None:
        """One of the step that is under way."""
        self.now.calls[call.kernel] += 1
        for counter, value in ((self.now.seconds, seconds), (self.now.flop, call.flop), (self.now.bytes, call.bytes)):
            counter[call.kernel] += value  # type: ignore[assignment]

    def step(self) -> None:
        super().step()
        if self.warmup < self.done <= self.total:
            self.now.span, self.now.peak = self.spans[-1], self.peak()
            self.kept.append(self.now)
        self.now, self._since = Seen(), time.perf_counter()


def rows_of(method: str, watch: Watch, rate: float) -> list[dict[str, Any]]:
    """rate: of memory, bytes a second."""
    kept = watch.kept
    peak = statistics.median(seen.peak for seen in kept)

    def line(part: str, seconds: Sequence[float], flop: float, moved: float, calls: float | None) -> dict[str, Any]:
        middle, floor = statistics.median(seconds), max(flop / peak, moved / rate)
        return {
            "method": method,
            "part": part,
            "calls": calls,
            "ms": round(1e3 * middle, 2),
            "least": round(1e3 * min(seconds), 2),
            "GFLOP": round(flop / 1e9, 2),
            "MB": round(moved / 1e6, 1),
            "floor ms": round(1e3 * floor, 2),
            "of the floor": round(floor / middle, 2),
        }

    def mean(counters: Sequence[Counter[str]], kernel: str) -> float:
        return statistics.mean(counter[kernel] for counter in counters)

    flops, moved, calls = ([getattr(seen, name) for seen in kept] for name in ("flop", "bytes", "calls"))
    names = sorted({name for seen in kept for name in seen.seconds}, key=lambda n: -sum(s.seconds[n] for s in kept))
    found = [
        line(name, [s.seconds[name] for s in kept], mean(flops, name), mean(moved, name), round(mean(calls, name), 1))
        for name in names
    ]
    whole = [sum(mean(counters, name) for name in names) for counters in (flops, moved)]
    kernels = [sum(seen.seconds.values()) for seen in kept]
    spans = [seen.span for seen in kept]
    tokens = statistics.mean(watch.batches[watch.warmup : watch.total])
    step = line("step", spans, *whole, None) | {
        "tokens": round(tokens),
        "peak TFLOP/s": round(peak / 1e12, 2),
        "most": round(max(seen.peak for seen in kept) / 1e12, 2),
        "GB/s": round(rate / 1e9, 1),
    }
    rest = [span - own for span, own in zip(spans, kernels, strict=True)]
    return [
        {"job": "step", **step},
        {"job": "step", **line("kernels", kernels, *whole, None)},
        {"job": "step", "method": method, "part": "rest", "ms": round(1e3 * statistics.median(rest), 2)},
        *({"job": "kernels", **row} for row in found),
    ]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with MRPC's train.tsv")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--cores", type=int, default=2, help="so many, those that neighbours disturb least")
    parser.add_argument("--dry", action="store_true", help="nothing is written")
    given = parser.parse_args()
    os.sched_setaffinity(0, quietest(given.cores))

    import tempfile

    import torch

    from benchmarks import speed_cpu_ours
    from intarsia.ops.native.compiled import amx

    if not amx():
        print("these kernels are for processors with AMX, which this one has not", file=sys.stderr)
        sys.exit(2)
    torch.set_num_threads(given.cores)
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        peak, rate = peak_kernel(Path(folder)), memory_rate()
        for method in given.methods:
            watch = Watch(given.steps, peak)
            with timed(watch.take):
                speed_cpu_ours.speed(method, "auto", given.data, watch, first_token=True)
            rows = rows_of(method, watch, rate)
            print(*rows, sep="\n", flush=True)
            table += rows
    if not given.dry:
        write_results("kernels_cpu", "The kernels for CPUs, within a step", table, text=TEXT)


if __name__ == "__main__":
    main()
