"""oneDNN's two layouts of a frozen matrix on a CPU with AMX: where the usual one leaves a thread idle (ops/frozen.py has the rule).

    OMP_NUM_THREADS=2 python -m benchmarks.bench_frozen_layouts
    python -m benchmarks.bench_frozen_layouts --dtype float32 --shapes 384x384 --rows 256 512 --turns 3

For each matrix (inputs x outputs) and number of rows, the microseconds of a product in the layout for many rows and in that for one
row, the least of some runs, which take turns; `rule`: whether the product takes the second. Prints; nothing is written.
"""

import argparse
import time

import torch
from torch import Tensor

from intarsia.ops.frozen import ROWS, _fast, _left_to_one

SHAPES = ("384x384", "1152x384", "1536x384", "768x768", "2304x768", "3072x768", "768x3072", "1024x1024", "4096x1024")
COUNTS = (64, 128, 256, 384, 512, 640, 768, 848, 960, 1024, 1152, 1280, 1536, 2048, 4096)


def microseconds(x: Tensor, layouts: list[Tensor], turns: int) -> list[float]:
    """The least of some turns, of each layout."""
    least = [float("inf")] * len(layouts)
    for turn in range(turns + 1):
        for index, weight in enumerate(layouts):
            began = time.perf_counter()
            _fast(x, weight, None)
            if turn:  # the first makes the product's code
                least[index] = min(least[index], 1e6 * (time.perf_counter() - began))
    return least


@torch.no_grad()
def main() -> None:
    """Prints a line for each shape and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="INPUTSxOUTPUTS")
    parser.add_argument("--rows", nargs="+", type=int, default=COUNTS)
    parser.add_argument("--turns", type=int, default=24)
    given = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {given.dtype}, torch {torch.__version__}")
    for shape in given.shapes:
        reads, writes = map(int, shape.split("x"))
        matrix = torch.randn(writes, reads).to(getattr(torch, given.dtype))
        layouts = [torch.ops.mkldnn._reorder_linear_weight(matrix, told) for told in (ROWS, 1)]
        for rows in given.rows:
            x = torch.randn(rows, reads).to(matrix.dtype)
            many, one = microseconds(x, layouts, given.turns)
            rule = _left_to_one(rows, reads, writes)
            print(f"{shape:>10} {rows:>5} rows: {many:>7.0f} and {one:>7.0f} us, {many / one:.2f} {'rule' * rule}")


if __name__ == "__main__":
    main()
