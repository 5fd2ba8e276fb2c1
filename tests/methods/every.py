"""Every method, small, with initial values large enough to matter; shared by the tests of methods, tasks, banks, backbones."""

from typing import Any

import torch

import tiny
from intarsia.backbone import Backbone
from intarsia.errors import UnsupportedError
from intarsia.heads import Head
from intarsia.methods import (
    BitFit,
    BottleneckAdapter,
    FullFineTuning,
    HeadOnly,
    LayerNormTuning,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    PTuningV2,
    TopLayers,
)
from intarsia.methods.lora import TARGETS
from intarsia.sites import Role
from intarsia.task import Task

FFN = (Role.FFN_OUT,)
METHODS: dict[str, Any] = {
    "serial": BottleneckAdapter(width=5),
    "pfeiffer": BottleneckAdapter(width=3, after=FFN, train_layer_norms=False, non_linearity="relu"),
    "parallel": BottleneckAdapter(width=4, parallel=True),
    "scaled": BottleneckAdapter(width=4, parallel=True, after=FFN, scale=4.0, train_layer_norms=False),
    "learned": BottleneckAdapter(width=4, scale="learned", train_layer_norms=False),
    "lora": LoRA(rank=2, targets=TARGETS),
    "lora of q and v": LoRA(rank=3, alpha=5.0),
    "layer-norm": LayerNormTuning(),
    "bitfit": BitFit(),
    "top-layers": TopLayers(k=1),
    "full": FullFineTuning(),
    "head": HeadOnly(),
}
PROMPTED: dict[str, Any] = {
    "prefix": PrefixTuning(length=3, mid=6, gating=True),
    "prefix flat": PrefixTuning(length=4, mid=None, init_std=0.5),
    "ptuning-v2": PTuningV2(length=5, init_std=0.5),
    "prompt": PromptTuning(length=3, init="uniform"),
    "ptuning lstm": PTuning(length=2, encoder="lstm"),
    "ptuning mlp": PTuning(length=4, encoder="mlp"),
}
HEAD = Head(labels=("no", "yes", "perhaps"), dropout=0.0)


def wrap(family: str, **changes: Any) -> Backbone:
    return Backbone.wrap(tiny.build(family, **changes))


def new_task(backbone: Backbone, method: str, *, name: str = "", head: Head | None = HEAD, awake: float = 0.1) -> Task:
    """A task whose every tensor is moved off its initial value by a normal of this standard deviation."""
    task = Task.new(name or method, backbone, METHODS[method], head).eval()
    return stir(task, awake) if awake else task


def stir(task: Task, std: float = 0.1, seed: int = 1) -> Task:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g).to(parameter) * std)
    return task


def usable(backbone: Backbone, methods: tuple[str, ...] = tuple(METHODS)) -> list[str]:
    """Those that the backbone supports: BitFit wants biases."""
    found = []
    for name in methods:
        try:
            METHODS[name].sites(backbone.sites)
        except UnsupportedError:
            assert name == "bitfit", name
            continue
        found.append(name)
    return found


def row(batch: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    return {key: value[index : index + 1] for key, value in batch.items()}


def bits(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {
        key: value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for key, value in state.items()
    }
