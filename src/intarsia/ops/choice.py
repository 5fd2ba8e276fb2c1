"""Whether a kernel of our own computes on these numbers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from intarsia.ops.summed import Late

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_TRITON = find_spec("triton") is not None
"""Looked up once, and here: torch.compile cannot trace it."""


def fused(x: Tensor | Late) -> bool:
    """On a GPU where Triton is installed, in the dtypes that the kernels know."""
    return _TRITON and x.is_cuda and x.dtype in _DTYPES
