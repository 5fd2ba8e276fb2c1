"""What is put in modules' places while padded rows are trained on a CPU with AMX: the same gradients, and nothing stays."""

import warnings

import pytest
import torch

from intarsia import Backbone, BottleneckAdapter, Head, LoRA, Task, TaskBank
from intarsia.ops.native import activations, bottleneck, compiled, norms, products

pytestmark = pytest.mark.skipif(
    not all(one.LIBRARY.there() for one in (activations, bottleneck, norms, products)),
    reason="needs a C compiler and torch with GNU OpenMP",
)
METHODS = {
    "lora": LoRA(),
    "adapter": BottleneckAdapter(init_up="normal"),
    "parallel": BottleneckAdapter(parallel=True, init_up="normal"),
}


def trained(method, dtype, *, taken, monkeypatch, checkpointing=False):
    """Loss and gradients of one step over MiniLM, and the kernels that were called."""
    calls = []
    with monkeypatch.context() as patch:
        for one in (compiled, products):
            patch.setattr(one, "amx", lambda: taken)
        for one in (activations, bottleneck, norms, products):
            right = one.LIBRARY.run
            patch.setattr(one.LIBRARY, "run", lambda name, *more, right=right: calls.append(name) or right(name, *more))
        backbone = Backbone.load("embedded:minilm", dtype=dtype, device="cpu")
        if checkpointing:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable.*", category=FutureWarning)
                backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
            backbone.model.train()
        task = Task.new("t", backbone, method, Head(labels=("a", "b"), pooling="cls"), seed=0).eval()
        g = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in task.parameters():
                parameter.add_(0.004 * torch.randn(parameter.shape, generator=g))
        bank = TaskBank(backbone, [task])
        before = {path: set(vars(module)) for path, module in backbone.model.named_modules()}
        texts = [f"number {i} " * (i % 4 + 1) for i in range(8)]
        loss = bank.loss(dict(backbone.tokenizer(texts, padding=True, return_tensors="pt")), torch.zeros(8).long(), "t")
        loss.backward()
        assert before == {path: set(vars(module)) for path, module in backbone.model.named_modules()}
    grads = torch.cat([p.grad.double().flatten() for p in task.parameters() if p.grad is not None])
    return loss.item(), grads, calls


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_gradients_are_those_of_float32_within_the_rounding_of_bf16(method, monkeypatch):
    exact = trained(method, "float32", taken=False, monkeypatch=monkeypatch)
    torch_only = trained(method, "bfloat16", taken=False, monkeypatch=monkeypatch)
    ours = trained(method, "bfloat16", taken=True, monkeypatch=monkeypatch)
    assert torch_only[2] == exact[2] == []
    layers = 6
    assert ours[2].count("activation_forward") == layers
    assert "activation_backward" not in ours[2]  # the products behind them take their slopes along
    assert ours[2].count("norm_forward") >= 2 * layers  # two blocks; adapters train the embeddings' norm, too
    assert ours[2].count("bottleneck_forward") == ours[2].count("bottleneck_backward") == 2 * layers
    assert abs(ours[0] - exact[0]) < 5e-3

    def off(found):
        return float((found[1] - exact[1]).norm() / exact[1].norm())

    assert off(ours) < max(1.3 * off(torch_only), 0.012)


def test_layers_that_run_again_in_backward_are_left_alone(monkeypatch):
    *once, calls = trained(LoRA(), "bfloat16", taken=True, monkeypatch=monkeypatch, checkpointing=True)
    assert not {"activation_forward", "norm_forward"} & set(calls)
    *other, _ = trained(LoRA(), "bfloat16", taken=True, monkeypatch=monkeypatch)
    assert once[0] != other[0]  # dropout is on, or nothing would run again
