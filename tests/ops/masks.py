"""Masks of attention, for the tests of the two ways to compute it."""

import torch


def masked(kind, size, dtype=torch.float64):
    """A mask by its name. size: (rows, heads, queries, keys, width); dtype: of what is added."""
    rows, heads, queries, keys, _ = size
    if kind == "none":
        return None
    if kind == "padding":
        mask = torch.ones(rows, 1, 1, keys, dtype=torch.bool)
        mask[0, ..., keys - keys // 2 :] = False
        return mask
    if kind == "causal":
        return torch.ones(queries, keys, dtype=torch.bool).tril(max(keys - queries, 0))[None, None]
    g = torch.Generator().manual_seed(1)
    if kind == "additive":
        return torch.randn(1, heads, queries, keys, generator=g).to(dtype)
    mask = torch.rand(rows, heads, queries, keys, generator=g) < 0.6
    mask[..., 0] = True
    if kind == "some see nothing":
        mask = mask[:, :1]
        mask[0, :, : (queries + 1) // 2] = False
    return mask
