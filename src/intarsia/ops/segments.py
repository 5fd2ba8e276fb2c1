"""Attention within the segments of packed rows: no padding is computed, and no segment sees another.

G segments, L queries and M keys in all, H heads, H_kv key-value heads, D width of a head.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from intarsia.ops.addressed import Before, row_prefix
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
    before: Before | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T) v, each query over its own segment's keys.

    query: (L, H, D), key and value: (M, H_kv, D), starts_q and starts_k: (G + 1,) int32, where each segment begins; the last is L
    or M. longest: bounds on a segment's length. causal: a segment's last query sees all its keys, the one before all but the last,
    and so on. window: of keys up to a query's own place, that many; 0: all. Without gradients also: before, keys and values
    that every query of a segment sees as well (the segments are its rows); counts: (G,), of a segment's keys, which then lie where
    starts_k (G,) says, and not one behind the other. Returns (L, H, D).
    """
    if before is not None or counts is not None:
        if fused(query):
            from intarsia.ops.kernels.segments import launch

            return launch(
                query, key, value, starts_q, starts_k, causal, scale, window, before, counts, longest=longest_q
            )[0]
        begins = starts_k.tolist()
        ends = begins[1:] if counts is None else [a + b for a, b in zip(begins, counts.tolist(), strict=True)]
        return _row_by_row(
            query, key, value, starts_q, list(zip(begins, ends, strict=False)), before, causal, scale, window
        )
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


def _row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    spans: Sequence[tuple[int, int]],
    before: Before | None,
    causal: bool,
    scale: float,
    window: int,
) -> Tensor:
    """The definition, with keys before each row's own, which are seen by all of its queries. spans: of each row's own keys."""
    out, bounds, groups = torch.zeros_like(query), starts.tolist(), query.shape[1] // key.shape[1]
    for row in range(len(bounds) - 1):
        own, (begin, end) = slice(bounds[row], bounds[row + 1]), spans[row]
        q, k, v = (x.transpose(0, 1) for x in (query[own], key[begin:end], value[begin:end]))
        behind_q, behind_k = (torch.arange(count, device=q.device).flip(0) for count in (q.shape[1], end - begin))
        seen = _seen(behind_q[:, None], behind_k[None], causal, window)
        found = None if before is None else row_prefix(before, row, *k.shape[::2])
        if found is not None:
            k, v = (torch.cat([first.to(x.dtype), x], dim=1) for first, x in zip(found, (k, v), strict=True))
            seen = torch.nn.functional.pad(seen, (k.shape[1] - (end - begin), 0), value=True)
        k, v = (x.repeat_interleave(groups, dim=0) for x in (k, v))
        scores = (q @ k.mT * scale).masked_fill(~seen, float("-inf"))
        out[own] = (scores.softmax(-1) @ v).transpose(0, 1)
    return out


def _seen(behind_q: Tensor, behind_k: Tensor, causal: bool, window: int) -> Tensor:
    """Which keys a query sees, by how many places follow each in its segment."""
    seen = torch.ones(behind_q.shape[0], behind_k.shape[1], dtype=torch.bool, device=behind_q.device)
    if causal:  # counted from the segment's end, where keys and queries meet
        seen = seen & (behind_k >= behind_q)
    return seen & (behind_k < behind_q + window) if window else seen


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
    seen = (own_q[:, None] == own_k[None]) & _seen(behind_q[:, None], behind_k[None], causal, window)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), value)


def _places(starts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Each place's segment, and how many places of it follow."""
    places = torch.arange(count, device=starts.device)
    own = torch.searchsorted(starts[1:].long(), places, right=True)
    ends = torch.nn.functional.pad(starts[1:].long(), (0, 1), value=count)  # those behind all segments are a last one
    return own, ends[own] - 1 - places
