"""Adapters and LoRA train through the bottleneck's kernel as without it, where it is taken; and where it is not."""

import pytest
import torch

from intarsia.methods import LoRA
from intarsia.methods.adapter import BottleneckAdapter, BottleneckDelta
from intarsia.methods.lora import LowRankDelta
from intarsia.ops.native import bottleneck as native
from intarsia.ops.native import compiled
from ops.bottlenecks import SIZES, draw, near, there


@pytest.fixture
def as_with_amx(monkeypatch):
    """The kernel is taken, and how often is counted."""
    monkeypatch.setattr(compiled, "amx", lambda: True)
    calls = []
    right = native.bottleneck
    monkeypatch.setattr(native, "bottleneck", lambda *args: calls.append(args[-2:]) or right(*args))
    return calls


@there
@pytest.mark.parametrize("more", [{}, {"parallel": True, "scale": 4.0}, {"init_up": "normal", "non_linearity": "relu"}])
def test_adapters_train_through_it_as_without_it(more, as_with_amx):
    torch.manual_seed(0)
    delta = BottleneckDelta(BottleneckAdapter(width=24, **more), reads=64, writes=64, width=24)
    torch.nn.init.normal_(delta.up, std=0.1)
    _trains_alike(delta, as_with_amx, (delta.method.non_linearity, float(delta.method.scale)))


@there
def test_lora_trains_through_it_as_without_it(as_with_amx):
    torch.manual_seed(0)
    delta = LowRankDelta(LoRA(rank=8, alpha=16), reads=64, writes=64)
    torch.nn.init.normal_(delta.b, std=0.1)
    _trains_alike(delta, as_with_amx, ("linear", 2.0))


def _trains_alike(delta, calls, said):
    x, y = torch.randn(2, 3, 41, 64).bfloat16()
    found = []
    for taken in (True, False):
        inputs = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        calls.clear()
        with torch.autocast("cpu", enabled=False):
            out = delta(*inputs) if taken else _without(delta, inputs)
        assert calls == ([said] if taken else [])
        grads = torch.autograd.grad(out.float().square().sum(), [*inputs, *delta.parameters()], allow_unused=True)
        found.append((out, *(torch.zeros(()) if one is None else one for one in grads)))
    for one, other in zip(*found, strict=True):
        near(one, other.double())


def _without(delta, inputs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "amx", lambda: False)
        return delta(*inputs)


def test_what_it_does_not_know_is_left_to_torch(as_with_amx):
    y, x, down, _, up, _, _ = draw(SIZES["a block and one"])
    trusted = native.LIBRARY.there()
    assert native.takes(y, x, down, up, "relu") == trusted
    assert not native.takes(y, x.float(), down, up, "relu")
    assert not native.takes(y, x[:0], down, up, "relu")
    assert not native.takes(y, x, down.double(), up.double(), "relu")
    assert not native.takes(y, x, down.detach(), up.detach(), "relu")
    assert not native.takes(y, x, down.repeat(2, 1, 1), up.repeat(2, 1, 1), "relu")
    assert not native.takes(y, x, down[..., :40], up, "relu")
    assert not native.takes(y, x, down.repeat(1, 6, 1), up.repeat(1, 1, 6), "relu")
    assert not native.takes(y, x, down, up, "mish")
    assert not native.takes(y.float(), x, down, up, "relu")
    assert not native.takes(y[:1], x, down, up, "relu")
    assert not native.takes(y, x, down[..., :32], up, "relu")
    assert not native.takes(y, x, down, up[..., :8], "relu")
    assert not native.takes(y, x, down, up[:, :32], "relu")
    with torch.no_grad():
        assert not native.takes(y, x, down, up, "relu")
    delta = LowRankDelta(LoRA(rank=8), reads=64, writes=64)
    compiled = torch.compile(lambda x, y: delta(x, y), backend="eager", fullgraph=True)
    assert compiled(x.detach(), y.detach()).shape == y.shape
    assert as_with_amx == []
