r"""Trained norms and biases: the small baselines, and the norms that adapters train along.

LayerNorm only (Houlsby et al. 2019, section 3.4): y' = y + g n(x) + c, where n is the norm without gain and bias; the
backbone's own gain and bias stay in y, so g (N, D) and c (N, D) are differences and start at zero.
BitFit (Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199): every bias of the transformer's layers; y' = y + c.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from intarsia import ops
from intarsia.errors import UnsupportedError
from intarsia.methods.base import Delta, Method, Pretrained, ProjectionDelta, with_roles
from intarsia.sites import Role, Site


def norm_sites(available: Sequence[Site], leave_out: Sequence[int] = ()) -> list[Site]:
    """All norms outside the left-out layers. Norms before layer 0 count as layer 0's: what is left out at the bottom of the
    network must leave the whole bottom untouched, so that it can be computed once for every task."""
    sites = with_roles(available, (Role.NORM,), leave_out)
    return [site for site in sites if site.layer >= 0] if 0 in leave_out else sites


class NormDelta(ProjectionDelta):
    """y' = y + gain * n(x) + bias.   gain, bias: (N, D), both differences from the backbone's own."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.eps, self.centre = site.eps, site.parameter == "layer"
        self.gain = nn.Parameter(torch.zeros(1, site.width))
        self.bias = nn.Parameter(torch.zeros(1, site.width)) if site.bias else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y: (B, ..., D), the norm's input and output. Returns (B, ..., D)."""
        return ops.norm_change(x, y, self.gain, self.bias, self.eps, centre=self.centre)

    def whole(self, x: Tensor | ops.Summed, own: ops.Own) -> Tensor:
        """y' itself, where nobody has computed y.   x: (B, ..., D)"""
        return ops.whole_norm(x, own, self.gain, self.bias)

    def change_(self, x: Tensor, y: Tensor) -> Tensor:
        """`forward` written into y."""
        own: Any = self
        if isinstance(own.gain, ops.At):
            return ops.add_norms_(x, y, own.gain, own.bias, self.eps, centre=self.centre)
        return ops.norm_change_(x, y, self.gain, self.bias, self.eps, centre=self.centre)

    def addressed(self) -> bool:
        """Always."""
        return True


class BiasDelta(ProjectionDelta):
    """y' = y + bias.   bias: (N, D), the difference from the backbone's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: unused; y: (B, ..., D). Returns (B, ..., D)."""
        return y + ops.per_task(self.bias, y)

    def change_(self, x: Tensor, y: Tensor) -> Tensor:
        """`forward` written into y."""
        own: Any = self.bias
        return ops.add_vectors_(y, own) if isinstance(own, ops.At) else y.add_(ops.per_task(own, y))

    def addressed(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerNormTuning(Method):
    """Train only the gains and biases of the norms (the paper's smallest baseline)."""

    name: ClassVar[str] = "layer-norm"
    default_lr: ClassVar[float] = 5e-3

    def sites(self, available: Sequence[Site]) -> list[Site]:
        """Every norm of the backbone."""
        return norm_sites(available)

    def build(self, sites: Sequence[Site], pretrained: Pretrained, labels: Sequence[str] = ()) -> dict[str, Delta]:
        """NormDeltas."""
        return {site.key: NormDelta(site) for site in sites}


@dataclass(frozen=True, kw_only=True, slots=True)
class BitFit(Method):
    """Train only the biases (Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199)."""

    name: ClassVar[str] = "bitfit"
    default_lr: ClassVar[float] = 5e-3

    def sites(self, available: Sequence[Site]) -> list[Site]:
        """Every module with a bias, norms included; UnsupportedError where there is none (llama, t5)."""
        if not (sites := with_roles(available, (Role.BIAS,))):
            raise UnsupportedError(
                "bitfit trains the backbone's biases and this backbone has none. Methods that work on it: "
                "adapter, lora, layer-norm, top-layers, full, head."
            )
        return sites

    def build(self, sites: Sequence[Site], pretrained: Pretrained, labels: Sequence[str] = ()) -> dict[str, Delta]:
        """BiasDeltas."""
        return {site.key: BiasDelta(site.width) for site in sites}
