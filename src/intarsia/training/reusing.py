"""Whether a run reads the layers under its lowest module from memory, and from which."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from intarsia.backbone.reuse import ReusedTrunk, lowest_layer
from intarsia.errors import UnsupportedError

if TYPE_CHECKING:
    from intarsia.training.member import Member

Ready = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""A batch as a source gives it -> as the bank takes it."""
_EPOCHS = 1.5
"""Epochs from which it pays: in the first, the layers are computed as ever."""


def as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Nothing is reused."""
    return batch


class Trunks:
    """The reused trunks of a pack: runs whose lowest module is at the same layer share one."""

    def __init__(self) -> None:
        self._held: dict[int, ReusedTrunk] = {}

    def of(self, member: Member) -> Ready:
        """With the stored states in the batch, where this run has some."""
        below = self._below(member)
        if not below:
            return as_it_is
        limit = int(member.settings.reuse_gib * 2**30)
        if below not in self._held:
            try:
                trunk = ReusedTrunk(member.bank.backbone, below=below, limit=limit)
                member.bank.backbone.train_mode(False)
                sources = [member.source, *([] if member.validation is None else [member.validation])]
                trunk.fill(source.load(key)[0] for source in sources for key in source.plan(0))
            except UnsupportedError:  # its layers hand on more than one tensor
                return as_it_is
            self._held[below] = trunk
        trunk = self._held[below]
        trunk.limit = max(trunk.limit, limit)
        return trunk.with_states

    @staticmethod
    def _below(member: Member) -> int:
        """The layers that are reused; 0: none."""
        settings, task, backbone = member.settings, member.task, member.bank.backbone
        if not settings.reuse_gib or settings.backbone_dropout or task.words:
            return 0
        # Of the whole run, not of what is left: a resumed one would meet states of other batches' shapes, and end with other bits.
        epochs = member.total / member.steps_per_epoch
        if epochs < _EPOCHS or not (below := lowest_layer(backbone, task.sites.values())):
            return 0
        tokens = sum(member.source.tokens(key) for key in member.source.plan(0))
        states = tokens * backbone.hidden * backbone.dtype.itemsize
        return below if states <= settings.reuse_gib * 2**30 else 0
