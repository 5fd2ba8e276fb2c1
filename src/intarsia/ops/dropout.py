"""Dropout whose mask is a function of a key and a place: the same for a row whoever computes it, and whatever else is computed."""

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def keyed_dropout(x: Tensor, probability: float, key: Tensor) -> Tensor:
    """x / (1 - p) where it is kept, 0 elsewhere. x: (N, ..., D), key: (N,) int64 in [0, 2^32). Returns x's shape.

    The bits are those of murmur3's finaliser over the place's number and the key, 32 bits in int64 arithmetic.
    """
    places = torch.arange(x[0].numel(), device=x.device).view(x.shape[1:])
    bits = (places * 0x9E3779B1 & _LOW)[None] ^ key.view(-1, *(1,) * (x.dim() - 1))
    bits = (bits ^ bits >> 16) * 0x85EBCA6B & _LOW
    bits = (bits ^ bits >> 13) * 0xC2B2AE35 & _LOW
    bits = bits ^ bits >> 16
    kept = bits >= int(probability * 2**32)
    return torch.where(kept, x / (1 - probability), torch.zeros((), dtype=x.dtype, device=x.device))
