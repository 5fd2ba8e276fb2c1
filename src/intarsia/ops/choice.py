"""Whether a kernel of our own computes on these numbers."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def fused(x: Tensor) -> bool:
    """On a GPU where Triton is installed, in the dtypes that the kernels know."""
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16, torch.float32) and _triton()


@cache
def _triton() -> bool:
    return find_spec("triton") is not None
