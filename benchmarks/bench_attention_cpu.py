"""Attention in bf16 on a CPU: our kernel, two products with a softmax between them, and torch's own in bf16 and fp32.

    OMP_NUM_THREADS=2 python -m benchmarks.bench_attention_cpu        # writes results/attention_cpu.{json,md}
    python -m benchmarks.bench_attention_cpu --only "MRPC" --seconds 0.2

For each shape forward alone, without gradients, and forward with backward to queries, keys and values, which are columns of one
tensor as a product gives them. The contenders take turns for some seconds; the least and the middle of their times.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.results import write_results
from intarsia.ops.attention import _Products
from intarsia.ops.native import attention as native

SHAPES = {
    "MRPC over MiniLM": (16, 12, 53, 32),
    "64 tokens, MiniLM": (32, 12, 64, 32),
    "128 tokens, MiniLM": (16, 12, 128, 32),
    "64 tokens, BERT-base": (32, 12, 64, 64),
    "128 tokens, BERT-base": (16, 12, 128, 64),
    "512 tokens, BERT-base": (4, 12, 512, 64),
}
"""Rows, heads, tokens, width of a head."""
TEXT = """`ours`: the kernel in `ops/native`; `products`: two products and a softmax in bf16, which stay where there is no C
compiler; `torch` and `torch fp32`: scaled_dot_product_attention. A tenth of the keys are hidden, as padding. The first three
are in bf16. `x products`, `x torch`: how much longer the middle of theirs is.

A roofline: MRPC's rows have 0.07 GFLOP forward and 0.24 with backward (which computes the scores again), a tenth of a millisecond
of two cores' AMX; q, k, v, their gradients, the result and its gradient are 5 MB. What takes the time is neither: it is the
softmax (some 15 vector instructions for 16 scores), layouts and roundings, and reading heads, 64 bytes of every 2,304, that the
other core has just written.
"""


def contenders(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> dict[str, Callable[[], Tensor]]:
    """Each gives (B, H, T, D)."""
    wide = [x.float() for x in (q, k, v)]
    found: dict[str, Callable[[], Tensor]] = {
        "products": lambda: _Products.apply(q, k, v, mask, scale),
        "torch": lambda: F.scaled_dot_product_attention(q, k, v, mask, scale=scale),
        "torch fp32": lambda: F.scaled_dot_product_attention(*wide, mask, scale=scale),
    }
    if native.takes(q, k, v, mask):
        found = {"ours": lambda: native.attention(q, k, v, mask, scale), **found}
    return found


def measured(size: tuple[int, int, int, int], seconds: float, *, backward: bool) -> dict[str, list[float]]:
    """Milliseconds of each contender's runs."""
    rows, heads, tokens, width = size
    whole = torch.randn(rows, tokens, 3 * heads * width).bfloat16().requires_grad_(backward)
    q, k, v = (x.view(rows, tokens, heads, width).transpose(1, 2) for x in whole.split(heads * width, -1))
    mask = torch.arange(tokens)[None, None, None, :].expand(rows, 1, 1, -1) < tokens - tokens // 10
    grad = torch.randn(rows, tokens, heads * width).bfloat16()
    runs = contenders(q, k, v, mask, width**-0.5)
    times: dict[str, list[float]] = {who: [] for who in runs}
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times["torch"]) < 4:
        for who, run in runs.items():
            start = time.perf_counter()
            with torch.set_grad_enabled(backward):
                out = run().transpose(1, 2).reshape(rows, tokens, heads * width)
                if backward:
                    torch.autograd.grad(out, whole, grad.to(out.dtype), retain_graph=True)
            times[who].append(1000 * (time.perf_counter() - start))
    return {who: own[1:] for who, own in times.items()}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="shapes whose name begins so; nothing is written then")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each shape, and each way")
    given = parser.parse_args()
    table: list[dict[str, Any]] = []
    for name, size in SHAPES.items():
        if not name.startswith(given.only):
            continue
        for backward in (False, True):
            times = measured(size, given.seconds, backward=backward)
            middle = {who: statistics.median(own) for who, own in times.items()}
            for who, own in times.items():
                row: dict[str, Any] = {"shape": name, "way": "with backward" if backward else "forward", "who": who}
                row |= {"ms": round(middle[who], 3), "least": round(min(own), 3), "runs": len(own)}
                if who == "ours":
                    row |= {f"x {other}": round(middle[other] / middle[who], 2) for other in ("products", "torch")}
                print(row, flush=True)
                table.append({**row, "threads": torch.get_num_threads()})
    if not given.only:
        write_results("attention_cpu", "Attention in bf16 on a CPU", table, text=TEXT)


if __name__ == "__main__":
    main()
