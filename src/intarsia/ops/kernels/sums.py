"""Sums of partial sums, in the order in which they lie, so the same bits each time; torch's own are several launches here: it
clears a counter, and casts afterwards.

N groups, P parts, F numbers of each.
"""

import triton
import triton.language as tl
from torch import Tensor

_PARTS, _COLUMNS = 64, 32


@triton.jit
def column_sums(sums_ptr, low_ptr, high_ptr, parts, size, split, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    group = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < size
    total = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        where = sums_ptr + (group * parts + part[:, None]) * size + columns[None, :]
        total += tl.sum(tl.load(where, mask=(part < parts)[:, None] & inside[None, :], other=0.0), 0)
    low = inside & (columns < split)
    tl.store(low_ptr + group * split + columns, total.to(low_ptr.dtype.element_ty), mask=low)
    high = inside & (columns >= split)
    tl.store(high_ptr + group * (size - split) + columns - split, total.to(high_ptr.dtype.element_ty), mask=high)


def add_up(sums: Tensor, low: Tensor, high: Tensor) -> None:
    """sums: (N, P, F) fp32, contiguous. Writes their sums over P: the first numbers to low (N, split), the others to high."""
    groups, parts, size = sums.shape
    most = min(_PARTS, triton.next_power_of_2(parts))
    columns = _COLUMNS * _PARTS // most
    column_sums[(-(-size // columns), groups)](
        sums, low, high, parts, size, low.numel() // groups, PARTS=most, COLUMNS=columns, num_warps=4
    )
