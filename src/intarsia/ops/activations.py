"""Non-linearities by the names that configs of transformers, adapters and the papers use."""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: MappingProxyType[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "relu": F.relu,
        "relu6": F.relu6,
        "leaky_relu": F.leaky_relu,
        "elu": F.elu,
        "gelu": F.gelu,
        "gelu_new": partial(F.gelu, approximate="tanh"),
        "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
        "silu": F.silu,
        "swish": F.silu,
        "mish": F.mish,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "linear": _identity,
    }
)
