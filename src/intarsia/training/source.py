"""Where batches come from, as far as training needs to know."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

IGNORED = -100
"""The label of a position without a label (token classification, the input of generation)."""


class BatchSource(Protocol):
    """Batches as a pure function of (its own seed, epoch): what makes a resumed run equal an undisturbed one."""

    def plan(self, epoch: int) -> Sequence[Any]:
        """A cheap key for each batch of this epoch, in order. Every epoch has the same number of batches."""
        ...

    def load(self, key: Any) -> tuple[dict[str, Tensor], Tensor | None]:
        """The batch and its labels, on the CPU. Labels are None where the rows have none."""
        ...

    def tokens(self, key: Any) -> int:
        """Real tokens of the batch, without padding."""
        ...


def weight(head: Any, labels: Tensor) -> int:
    """Over how many labels `bank.loss` takes its mean: rows, or labelled tokens. labels: (B,), (B, C) or (B, T)."""
    if labels.is_floating_point() or (head.kind == "generation" and head.loss == "sentence"):
        return len(labels)
    return int((labels != IGNORED).sum())
