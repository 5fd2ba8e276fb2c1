r"""LoRA (Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685).

    y' = y + (alpha / R) B A x          A: (N, R, D_in), B: (N, D_out, R)

Initialisation: A Kaiming-uniform with a = sqrt(5), as the authors' code does (the paper says Gaussian); B zero, so a new
task is the identity. Default targets are the query and value projections, the paper's choice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia import ops
from intarsia.errors import ConfigError, UnsupportedError
from intarsia.methods.base import Delta, Method, Pretrained, ProjectionDelta, check_leave_out, with_roles
from intarsia.sites import Role, Site

TARGETS = (Role.Q, Role.K, Role.V, Role.O, Role.FFN_IN, Role.FFN_DOWN)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRA(Method):
    """Low-rank adaptation (Hu et al. 2022, https://arxiv.org/abs/2106.09685)."""

    name: ClassVar[str] = "lora"
    default_lr: ClassVar[float] = 2e-3

    rank: int = 8
    """Rank R."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    targets: tuple[Role, ...] = (Role.Q, Role.V)
    """Projections that are adapted: q, k, v, o, ffn_in, ffn_down; of experts, those of the shared one."""
    dropout: float = 0.0
    """Dropout on the input of A while training."""
    leave_out: tuple[int, ...] = ()
    """Layers without LoRA, counted from 0 within each stack."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"LoRA.rank must be at least 1, got {self.rank}")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise ConfigError(f"LoRA.alpha must be a number above 0, got {self.alpha}")
        if not self.targets or not set(self.targets) <= set(TARGETS):
            raise ConfigError(
                f"LoRA.targets must be some of {', '.join(TARGETS)}, got {[str(r) for r in self.targets]}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"LoRA.dropout must be in [0, 1), got {self.dropout}")

    def sites(self, available: Sequence[Site]) -> list[Site]:
        """The target projections, cross-attention's included."""
        check_leave_out(self.leave_out, available, "LoRA")
        here = [role for role in TARGETS if any(site.role is role for site in available)]
        if missing := [role for role in self.targets if role not in here]:
            raise UnsupportedError(
                f"LoRA.targets holds {', '.join(missing)}, which this backbone does not have as projections of their own (all "
                "experts' weights are one tensor, and some queries, keys and values one projection); its targets can be "
                f"{', '.join(here) or 'none'}."
            )
        if not (sites := with_roles(available, self.targets, self.leave_out)):
            raise UnsupportedError("LoRA finds none of its targets on this backbone: every layer is left out.")
        return sites

    def build(self, sites: Sequence[Site], pretrained: Pretrained, labels: Sequence[str] = ()) -> dict[str, Delta]:
        """LowRankDeltas."""
        return {site.key: LowRankDelta(self, reads=site.source_width, writes=site.width) for site in sites}


class LowRankDelta(ProjectionDelta):
    """y' = y + (alpha / R) B A x.   A: (N, R, D_in), B: (N, D_out, R)"""

    def __init__(self, method: LoRA, *, reads: int, writes: int) -> None:
        super().__init__()
        self.method = method
        self.a = nn.Parameter(torch.empty(1, method.rank, reads))
        self.b = nn.Parameter(torch.zeros(1, writes, method.rank))
        nn.init.kaiming_uniform_(self.a[0], a=math.sqrt(5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (B, T, D_in), y: (B, T, D_out). Returns (B, T, D_out)."""
        return ops.add_low_rank(y, self._dropped(x), self.a, self.b, self.method.alpha / self.method.rank)

    def change_(self, x: Tensor, y: Tensor) -> Tensor:
        """`forward` written into y."""
        a, b = self.a, self.b
        if isinstance(a, ops.At) and isinstance(b, ops.At):
            return ops.adapt_(x, y, a, None, b, None, None, self.method.alpha / self.method.rank)
        inner = ops.linear(self._dropped(x), self.a, None)
        return ops.add_linear_(y, inner, self.b, None, self.method.alpha / self.method.rank)

    def addressed(self) -> bool:
        """Where the kernel takes the rank."""
        return ops.fused_activation("relu", self.method.rank) is not None

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.method.dropout) if self.training and self.method.dropout else x
