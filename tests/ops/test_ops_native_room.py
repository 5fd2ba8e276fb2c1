"""The room that kernels for CPUs work in: they give it back."""

import os
import sys
from pathlib import Path

import pytest
import torch

from intarsia.ops import Own, Panels
from intarsia.ops.native import attention, bottleneck, norms, products

there = pytest.mark.skipif(
    not all(one.LIBRARY.there() for one in (attention, bottleneck, norms, products)),
    reason="needs a C compiler and torch with GNU OpenMP",
)


def attended():
    q, k = torch.zeros(1, 1, 1, 32).bfloat16().requires_grad_(), torch.zeros(1, 1, 6000, 32).bfloat16()
    return attention.attention(q, k, k, None, 1.0), (q,)


def bottlenecked():
    x = torch.zeros(1, 6400).bfloat16()
    down, up = torch.zeros(1, 32, 6400).requires_grad_(), torch.zeros(1, 6400, 32).requires_grad_()
    return bottleneck.bottleneck(x, x, down, None, up, None, "linear"), (down, up)


def normed():
    x = torch.zeros(1, 320_000).bfloat16().requires_grad_()
    return norms.summed_norm(x, None, Own(None, None, 1e-5, True), None, None)[0], (x,)


def multiplied():
    panels = Panels([torch.zeros(32, 64_000).bfloat16()])
    return panels.forward(torch.zeros(1, 64_000).bfloat16(), None), None


@there
@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of a process as Linux tells it")
@pytest.mark.parametrize(
    ("work", "way"),
    [
        (multiplied, "forward"),
        *((work, way) for work in (attended, bottlenecked, normed) for way in ("forward", "backward")),
    ],
)
def test_room_is_given_back(work, way):
    def size():
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")

    (out, leaves), grown = work(), 0
    for times in (3, 50):  # what is kept for the next time is there after some
        before = size()
        for _ in range(times):
            if way == "forward":
                work()
            else:
                torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)
        grown = size() - before
    assert grown < 2**26  # each takes 3 MiB or more at a time
