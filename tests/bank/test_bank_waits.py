"""A pass that waits for the device cannot be a CUDA graph, and is then run as it is: right, and ten times slower."""

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from bank.test_bank_graphs import DEVICE, FAMILIES, WITHOUT, graphed, mixed, tasks_of, there
from bank.test_bank_stored import ragged
from intarsia.serving.decoder import Decoder, Writing
from intarsia.serving.sampling import Sampling
from methods.every import wrap
from serving.writing import Letters

HALF = torch.bfloat16
"""In which a GPU runs; some kernels stand in for the model's own only there."""
WAITING = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "masked_select", "unique", "allclose")
WRITERS = [family for family in FAMILIES if family in tiny.DECODERS]
METHODS = ("serial", "lora", "layer-norm", "prefix flat")
DEFINITIONS = "intarsia/ops/"
"""What a GPU has kernels for."""


class Waits(TorchDispatchMode):
    """Where a pass asks for what a tensor holds."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        if call.overloadpacket.__name__ in WAITING:
            frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()]
            if not any(DEFINITIONS in frame for frame in frames):
                self.seen.add(frames[-2])
        return call(*args, **(kwargs or {}))


def watched(bank, monkeypatch):
    """What the passes of a bank wait for, from the second one of each sort."""
    waits, sorts, send = Waits(), set(), type(bank.graphs)._send

    def sending(graphs, one, flats, kept):
        if one.key not in sorts:
            sorts.add(one.key)
            return send(graphs, one, flats, kept)
        with waits:
            return send(graphs, one, flats, kept)

    monkeypatch.setattr(type(bank.graphs), "_send", sending)
    return waits, sorts


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU makes the graphs, which the tests below ask for")
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITHOUT])
def test_a_pass_never_waits_for_the_device(family, monkeypatch):
    tasks = tasks_of(wrap(family), METHODS, each=1)
    rows = mixed(tasks, family)
    bank = graphed(there(family, HALF), tasks)
    waits, sorts = watched(bank, monkeypatch)
    with torch.no_grad():
        for _ in range(2):
            bank(ragged(family, len(rows)), tasks=rows)
    assert sorts
    assert not waits.seen


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU makes the graphs, which the tests below ask for")
@pytest.mark.parametrize("family", WRITERS)
def test_a_pass_that_writes_never_waits_for_the_device(family, monkeypatch):
    bank = graphed(there(family, HALF), tasks_of(wrap(family), METHODS, each=1))
    waits, sorts = watched(bank, monkeypatch)
    write(bank)
    assert sorts
    assert not waits.seen


def write(bank):
    bank.backbone._tokenizer = Letters()
    decoder = Decoder(bank)
    for _ in range(2):
        for task in (None, *bank.tasks):
            decoder.add(Writing([5, 6, 7], task, Sampling(max_tokens=6)))
        while decoder.running or decoder.waiting:
            assert not [one.error for one in decoder.step() if one.error is not None]


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITHOUT])
def test_passes_in_half_precision_are_graphs(family):
    tasks = tasks_of(wrap(family), METHODS, each=1)
    rows = mixed(tasks, family)
    bank = graphed(there(family, HALF), tasks)
    with torch.no_grad():
        for _ in range(3):
            bank(ragged(family, len(rows)), tasks=rows)
    assert bank.graphs._passes
    assert not bank.graphs._never
    if family in WRITERS:
        write(bank)
        assert any(key.slots is not None for key in bank.graphs._passes)
        assert not bank.graphs._never
