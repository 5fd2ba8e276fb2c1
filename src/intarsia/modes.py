"""The modes of torch that a caller may be in: what makes tensors that last, or trains, runs as it does outside all of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def own_modes() -> Iterator[None]:
    """As a block or a decorator: gradients are on, and no_grad, inference_mode and autocast of the caller are off.

    Inference mode counts where tensors are made, too: one that was made in it can never take part in training.
    """
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        yield
