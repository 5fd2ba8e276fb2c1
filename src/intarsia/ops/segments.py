"""Attention within the segments of packed rows: no padding is computed, and no segment sees another.

G segments, L queries and M keys in all, H heads, H_kv key-value heads, D width of a head.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from intarsia.ops.choice import fused


def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    longest_q: int,
    longest_k: int,
    *,
    causal: bool,
    scale: float,
    window: int = 0,
) -> Tensor:
    """softmax(scale q k^T) v, each query over its own segment's keys.

    query: (L, H, D), key and value: (M, H_kv, D), starts_q and starts_k: (G + 1,) int32, where each segment begins; the last is L
    or M. longest: bounds on a segment's length. causal: a segment's last query sees all its keys, the one before all but the last,
    and so on. window: of keys up to a query's own place, that many; 0: all. Returns (L, H, D).
    """
    if fused(query):
        from intarsia.ops.kernels.segments import LONGEST, short_segments

        if longest_k <= LONGEST or query.dtype == torch.float32:
            return short_segments(query, key, value, starts_q, starts_k, causal, scale, window)[0]
        return _flash(query, key, value, starts_q, starts_k, longest_q, longest_k, causal, scale, window)
    return _reference(query, key, value, starts_q, starts_k, causal, scale, window)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    longest_q: int,
    longest_k: int,
    causal: bool,
    scale: float,
    window: int,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    more: dict[str, Any] = {"scale": scale, "window_size": (window - 1 if window else -1, 0 if causal else -1)}
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # torch 2.12 and later
            more["enable_gqa"] = True
        else:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    found = varlen_attn(query, key, value, starts_q, starts_k, longest_q, longest_k, **more)
    assert isinstance(found, Tensor)
    return found


def _reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    causal: bool,
    scale: float,
    window: int,
) -> Tensor:
    """The definition, with every query against every key: for tests, and where there is no kernel."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    own_q, behind_q = _places(starts_q, query.shape[0])
    own_k, behind_k = _places(starts_k, key.shape[0])
    seen = own_q[:, None] == own_k[None]
    if causal:  # counted from the segment's end, where keys and queries meet
        seen = seen & (behind_k[None] >= behind_q[:, None])
    if window:
        seen = seen & (behind_k[None] < behind_q[:, None] + window)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), value)


def _places(starts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Each place's segment, and how many places of it follow."""
    places = torch.arange(count, device=starts.device)
    own = torch.searchsorted(starts[1:].long(), places, right=True)
    return own, starts.long()[own + 1] - 1 - places
