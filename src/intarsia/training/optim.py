"""Optimizers over a task's parameters, and their state as plain tensors and numbers."""

from typing import Any

import torch
from torch import Tensor, nn

from intarsia.training.settings import TrainSettings

HEAD = "head_module."
"""What the names of the head's parameters begin with."""
Scalars = dict[str, dict[str, int | float]]
OptimizerState = tuple[dict[str, Tensor], Scalars]
"""By the parameters' names: tensors as `name/key`, and Python numbers apart."""


def build_optimizer(task: Any, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW, or Adafactor as in prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691).

    Groups: the deltas and the head, each with weight decay, and without it (the names in `task.decay_free()`: biases, gains,
    prompts). The learning rate is set by the loop before each step, times the group's `share`.
    """
    groups = decay_groups(task, settings.decay(), settings.head_share(alone=head_alone(task)))
    if settings.optimizer == "adafactor":
        # Not torch.optim.Adafactor: it caps the rate at 1/sqrt(step), always scales by the parameter, and waits for
        # the GPU twice per tensor. Row and column statistics are over the last two axes: each task keeps its own.
        from transformers.optimization import Adafactor

        return Adafactor(groups, lr=0.0, scale_parameter=False, relative_step=False, warmup_init=False)
    # A task is hundreds of small tensors; the fused kernel takes one call for all of them.
    fused = all(p.device.type in {"cpu", "cuda"} for p in task.parameters())
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=fused)


def decay_groups(task: Any, weight_decay: float, head_share: float = 1.0) -> list[dict[str, Any]]:
    free: set[str] = task.decay_free()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained(task).items():
        share = head_share if name.startswith(HEAD) else 1.0
        groups.setdefault((0.0 if name in free else weight_decay, share), []).append(parameter)
    return [{"params": own, "weight_decay": decay, "share": share} for (decay, share), own in groups.items()]


def trained(task: Any) -> dict[str, nn.Parameter]:
    return {name: p for name, p in task.named_parameters() if p.requires_grad}


def head_alone(task: Any) -> bool:
    """Whether nothing but the head is trained."""
    return all(name.startswith(HEAD) for name in trained(task))


def optimizer_state(optimizer: torch.optim.Optimizer, task: Any) -> OptimizerState:
    """What the optimizer knows of each parameter."""
    tensors: dict[str, Tensor] = {}
    scalars: Scalars = {}
    for name, parameter in trained(task).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            else:
                scalars.setdefault(name, {})[key] = value
    return tensors, scalars


def load_optimizer_state(optimizer: torch.optim.Optimizer, task: Any, state: OptimizerState) -> None:
    """The inverse of `optimizer_state`."""
    named, (tensors, scalars) = trained(task), state
    for path, value in tensors.items():
        name, key = path.rsplit("/", 1)
        # Only a fused AdamW keeps its step count beside the parameter; without the kernel it stays on the CPU.
        beside = key != "step" or bool(optimizer.defaults.get("fused"))
        optimizer.state[named[name]][key] = value.to(named[name].device) if beside else value
    for name, values in scalars.items():
        optimizer.state[named[name]].update(values)
