"""Inputs of the bottleneck's kernel, shared by its tests."""

import pytest
import torch

from intarsia.ops.native import bottleneck as native

there = pytest.mark.skipif(not native.LIBRARY.there(), reason="needs a C compiler and torch with GNU OpenMP")
SIZES = {
    "MRPC's, rank 8": (848, 384, 384, 8),
    "one row": (1, 32, 32, 1),
    "a block and one": (65, 64, 64, 24),
    "under half a block": (33, 96, 96, 33),
    "narrower than read": (64, 256, 64, 32),
    "wider than read": (130, 32, 288, 100),
    "the widest": (70, 64, 64, 128),
}
"""Rows, numbers read and written, narrow side."""


def draw(size, *, serial=False, biases=True):
    """y, x, down, down_bias, up, up_bias, grad; y is x where `serial`."""
    rows, reads, writes, width = size
    g = torch.Generator().manual_seed(0)
    x, y, grad = (torch.randn(rows, n, generator=g).bfloat16() for n in (reads, writes, writes))
    down, up = torch.randn(1, width, reads, generator=g) / reads**0.5, torch.randn(1, writes, width, generator=g)
    given = [torch.randn(1, n, generator=g) if biases else None for n in (width, writes)]
    y, x, *more = (None if t is None else t.requires_grad_() for t in (y, x, down, given[0], up, given[1]))
    return x if serial else y, x, *more, grad


def near(found, wanted):
    """Within some roundings of bf16 of the largest."""
    torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=1.5e-2 * float(wanted.detach().abs().max()))
