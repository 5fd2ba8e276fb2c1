"""The baselines that train the backbone's own weights, through the same interface, so that a comparison is honest.

Full fine-tuning; the top k layers (Houlsby et al. 2019, section 3.3, "variable fine-tuning"); and the head alone. The task
keeps its own copy of each trained parameter, so the backbone stays frozen and shared; rows of such a task are computed in a
pass of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from intarsia.errors import ConfigError
from intarsia.methods.base import Delta, Method, Pretrained, WeightDelta, with_roles
from intarsia.sites import Role, Site


@dataclass(frozen=True, kw_only=True, slots=True)
class FullFineTuning(Method):
    """Train a copy of every parameter of the backbone."""

    name: ClassVar[str] = "full"
    default_lr: ClassVar[float] = 1e-4

    def sites(self, available: Sequence[Site]) -> list[Site]:
        """Every parameter."""
        return with_roles(available, (Role.WEIGHT,))

    def build(self, sites: Sequence[Site], pretrained: Pretrained, labels: Sequence[str] = ()) -> dict[str, Delta]:
        """WeightDeltas that start at the backbone's values."""
        return {site.key: WeightDelta(pretrained.parameter(site)) for site in sites}


@dataclass(frozen=True, kw_only=True, slots=True)
class TopLayers(Method):
    """Train a copy of the parameters of the top k layers (of the decoder, where there is one)."""

    name: ClassVar[str] = "top-layers"
    default_lr: ClassVar[float] = 2e-4

    k: int = 2
    """How many layers, counted from the top."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"TopLayers.k must be at least 1, got {self.k}")

    def sites(self, available: Sequence[Site]) -> list[Site]:
        """The parameters of the top k layers, and of the norm after them."""
        weights = with_roles(available, (Role.WEIGHT,))
        stack = "decoder" if any(s.stack == "decoder" for s in weights) else "encoder"
        layers = [s for s in available if s.stack == stack and s.role in (Role.ATTN_OUT, Role.FFN_OUT)]
        depth = 1 + max(s.layer for s in layers)
        if self.k > depth:
            raise ConfigError(
                f"TopLayers.k is {self.k}, but the backbone's {stack} has {depth} layers; give at most {depth}."
            )
        return [s for s in weights if s.stack == stack and s.layer >= depth - self.k]

    def build(self, sites: Sequence[Site], pretrained: Pretrained, labels: Sequence[str] = ()) -> dict[str, Delta]:
        """WeightDeltas that start at the backbone's values."""
        return {site.key: WeightDelta(pretrained.parameter(site)) for site in sites}


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadOnly(Method):
    """Train nothing but the head on frozen features."""

    name: ClassVar[str] = "head"
    default_lr: ClassVar[float] = 5e-3

    def sites(self, available: Sequence[Site]) -> list[Site]:
        """None."""
        return []

    def build(self, sites: Sequence[Site], pretrained: Pretrained, labels: Sequence[str] = ()) -> dict[str, Delta]:
        """Nothing."""
        return {}
