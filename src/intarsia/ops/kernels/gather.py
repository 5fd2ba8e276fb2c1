"""Copies of tensors that lie apart, one below the other, in one kernel.

torch.stack is told of each tensor by itself: half a millisecond for 256 of them, a tenth of what a GPU needs for their batch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 2048


@triton.jit
def _gather(first_ptr, offsets_ptr, out_ptr, size, CHUNK: tl.constexpr):
    at, row = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK), tl.program_id(1)
    offset = tl.multiple_of(tl.load(offsets_ptr + row), 8)
    values = tl.load(first_ptr + offset + at, mask=at < size)
    tl.store(out_ptr + row.to(tl.int64) * size + at, values, mask=at < size)


def gather(first: Tensor, offsets: Tensor) -> Tensor:
    """(N, size): N flat tensors. first: one of them; offsets: (N,), how many numbers behind it each begins, a multiple of 8."""
    size = len(first)
    out = torch.empty(len(offsets), size, dtype=first.dtype, device=first.device)
    _gather[(-(-size // _CHUNK), len(offsets))](first, offsets, out, size, CHUNK=_CHUNK)
    return out
