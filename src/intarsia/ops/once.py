"""torch's once_differentiable, which costs each small step of a backward pass some Python, only where it is needed."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd import function


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A Function's backward that cannot be differentiated itself: whoever tries to is told. Nobody can where gradients are off
    while it runs."""
    guarded = function.once_differentiable(backward)

    @wraps(backward)
    def chosen(ctx: Any, *grads: Any) -> Any:
        return (guarded if torch.is_grad_enabled() else backward)(ctx, *grads)

    return chosen
