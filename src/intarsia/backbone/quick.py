"""What takes the place of modules' own computation while padded rows are trained on a CPU with AMX, where all that is not a
product takes most of the time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intarsia.backbone.hooks import computing
from intarsia.ops import activated

if TYPE_CHECKING:
    from intarsia.backbone.backbone import Backbone


def quick(backbone: Backbone) -> AbstractContextManager[None]:
    """Meanwhile residual sums are left to the norms behind them, and activations are kernels of ours. Not with checkpointing, which
    runs layers again when this is over."""
    if not backbone.paneled or backbone.checkpointing or not torch.is_grad_enabled():
        return nullcontext()
    bent = ((module, partial(_activated, name)) for module, name in backbone.plain.activations)
    return computing([*backbone.left_to_norms, *bent])


def _activated(name: str, input: Tensor) -> Tensor:
    return activated(input, name)
