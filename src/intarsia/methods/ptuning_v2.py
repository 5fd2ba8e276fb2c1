"""P-tuning v2 (Liu et al. 2022, "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks",
https://arxiv.org/abs/2110.07602).

Prefix tuning for understanding: a flat prefix at every attention, and a linear head on [CLS] or on each token. The formulas are
those of prefix.py. As in the authors' code, a reparameterisation is an option (`mid`), the prefix has dropout, and learning
rates are large. Their embedding is drawn from N(0, 1), or from N(0, 0.02) where the model re-initialises it on loading.
"""

from dataclasses import dataclass
from typing import ClassVar

from intarsia.methods.prefix import PrefixTuning


@dataclass(frozen=True, kw_only=True, slots=True)
class PTuningV2(PrefixTuning):
    """P-tuning v2 (Liu et al. 2022, https://arxiv.org/abs/2110.07602)."""

    name: ClassVar[str] = "ptuning-v2"

    length: int = 20
    """Virtual positions P. The paper: under 20 for classification, about 100 for tagging."""
    mid: int | None = None
    """Width of a reparameterisation's hidden layer, which helps on some tasks (paper: 512); None: a flat prefix."""
    dropout: float = 0.1
    """Dropout on the prefix while training; the paper takes the backbone's own."""

    @property
    def default_lr(self) -> float:  # type: ignore[override]
        """The middle of the paper's range for a flat prefix."""
        return 1e-2 if self.mid is None else 1e-3
