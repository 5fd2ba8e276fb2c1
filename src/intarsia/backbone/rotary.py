"""The turning of queries and keys by their positions (RoPE, Su et al. 2021), which transformers' attentions call by a name in their
Python module, so that there is no module to hook.

Where such a function is found to compute what `ops.rotated` does, one of ours stands in its place, for good: it calls theirs, but
for packed passes on a GPU. So nothing is swapped while another thread runs another model of the same sort.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from intarsia import ops

_NAME = "apply_rotary_pos_emb"
_OURS = "_intarsia"
_thread = threading.local()


def know_rotary(attention: nn.Module) -> None:
    """Sees to it that this attention's turning can be `ops.rotated`, where it is that."""
    module = sys.modules[type(attention).__module__]
    theirs = getattr(module, _NAME, None)
    if theirs is not None and not hasattr(theirs, _OURS) and _is_ours(theirs):
        setattr(module, _NAME, _standing_for(theirs))


def _is_ours(theirs: Callable[..., Any]) -> bool:
    draws = torch.Generator().manual_seed(0)
    shapes = (1, 4, 3, 8), (1, 2, 3, 8), (1, 3, 8), (1, 3, 8)
    q, k, cos, sin = (torch.randn(shape, generator=draws) for shape in shapes)
    try:
        found = theirs(q, k, cos, sin)
        return all(torch.allclose(own, x, rtol=1e-5) for own, x in zip(found, ops.rotated(q, k, cos, sin), strict=True))
    except (TypeError, ValueError, RuntimeError):  # it takes something else
        return False


def _standing_for(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def turned(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **more: Any) -> Any:
        alike = q.dim() == 4 and cos.dim() == 3 and q.shape[-1] == cos.shape[-1] and q.dtype == cos.dtype
        if getattr(_thread, "packed", False) and alike and not args and not more:
            return ops.rotated(q, k, cos, sin)
        return theirs(q, k, cos, sin, *args, **more)

    setattr(turned, _OURS, True)
    return turned


@contextmanager
def turning() -> Iterator[None]:
    """This thread's calls meanwhile are packed passes."""
    before = getattr(_thread, "packed", False)
    _thread.packed = True
    try:
        yield
    finally:
        _thread.packed = before
