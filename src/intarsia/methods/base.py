"""What every method is: a frozen dataclass of hyperparameters that chooses sites and builds a delta for each.

A delta is an `nn.Module` at one site. Every trainable tensor has a leading task axis N: one task is N = 1, a bank of
tasks is a concatenation on axis 0. There is one base class per seam of the frozen transformer:

    ProjectionDelta    y <- y + delta(x, y)        adapters, LoRA, trained norms and biases
    WeightDelta        W <- W'                     the baselines that train the backbone's own weights (they do not mix
                                                   with other tasks in one pass)
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from intarsia.sites import Role, Site


class Delta(nn.Module):
    """A task's module at one site; its tensors are (N, ...), kept in fp32 and cast to the backbone's dtype when used."""

    def decay_free(self) -> frozenset[str]:
        """Names of the own tensors that take no weight decay: biases and gains."""
        return frozenset(name for name, _ in self.named_parameters() if name.endswith(("bias", "gain", "scale")))


class ProjectionDelta(Delta):
    """Changes the output of a module: y' = forward(x, y, route)."""

    def forward(self, x: Tensor, y: Tensor, route: Tensor | None) -> Tensor:
        """x: (B, T, D_in), y: (B, T, D), route: (B,) in [0, N), or None for N = 1. Returns (B, T, D)."""
        raise NotImplementedError


class WeightDelta(Delta):
    """Takes the place of one parameter of the backbone."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.detach().to(torch.float32, copy=True).unsqueeze(0))

    def decay_free(self) -> frozenset[str]:
        """Biases and norms are the parameters with one axis (two with the task axis)."""
        return frozenset({"value"}) if self.value.dim() <= 2 else frozenset()

    def forward(self) -> Tensor:
        """Returns the parameter's replacement, (*shape)."""
        return self.value[0]


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass, one per paper."""

    name: ClassVar[str]
    """How the command line and task.json call it."""
    default_lr: ClassVar[float]
    """A learning rate that works for AdamW on small and medium backbones."""

    def sites(self, available: Sequence[Site]) -> list[Site]:
        """The sites that this method changes, out of all the backbone's."""
        ...

    def build(self, site: Site, value: Tensor | None = None) -> Delta:
        """A new delta for one task. `value`: the present parameter, at sites of Role.WEIGHT."""
        ...


def with_roles(available: Iterable[Site], roles: Iterable[Role], leave_out: Sequence[int] = ()) -> list[Site]:
    """The sites with one of these roles, without those in the left-out layers (indices count within each stack)."""
    wanted, dropped = frozenset(roles), frozenset(leave_out)
    return [site for site in available if site.role in wanted and site.layer not in dropped]


def check_leave_out(leave_out: Sequence[int], available: Iterable[Site], owner: str) -> None:
    """ConfigError when an index names no layer."""
    from intarsia.errors import ConfigError

    depth = 1 + max((site.layer for site in available if site.role is Role.ATTN_OUT), default=-1)
    if wrong := [index for index in leave_out if not 0 <= index < depth]:
        raise ConfigError(
            f"{owner}.leave_out holds {wrong[0]}, but the backbone's layers are 0 to {depth - 1}; give indices of layers."
        )
