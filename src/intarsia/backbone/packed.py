"""Packed rows: the rows of each member of a pack one after the other in one long row, without padding.

To the model a batch of K members is (K, S) tokens, each member's rows in S columns; what keeps the rows apart is attention,
which here runs within segments, and positions, which begin anew with each. Deltas of K tasks (tensors (K, ...)) then have one row
each, as in any batch.

K members, S columns, G segments (rows, and stretches of unused columns), P virtual positions of a prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from intarsia.backbone.attention import Result, wanted
from intarsia.backbone.hooks import computing
from intarsia.backbone.rotary import turning
from intarsia.errors import UnsupportedError
from intarsia.ops import Before, segment_attention
from intarsia.sites import Role

if TYPE_CHECKING:
    from intarsia.backbone.backbone import Backbone

NAME = "intarsia_packed"
_SEGMENTS = "_intarsia_segments"
_UNKNOWN = ("attention_mask", "position_bias", "softcap", "s_aux")
"""What some attentions add to the scores, and the kernel for segments does not."""


class Slots:
    """Keys and values of rows that are being written: a slot for each row, and a place behind them for what nobody reads."""

    def __init__(self, backbone: Backbone, count: int, columns: int) -> None:
        """count: slots; columns: of each."""
        self.count, self.columns = count, columns
        self.held: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        """By the attention's module, (count * columns + 1, H_kv, D) each."""
        for site in (site for site in backbone.sites if site.role is Role.KV):
            heads, *widths = backbone.pretrained.heads(site)
            with torch.inference_mode(False):  # or nothing could be put there outside of it
                self.held[backbone.base.get_submodule(site.module)] = tuple(  # type: ignore[assignment]
                    torch.zeros(count * columns + 1, heads, width, dtype=backbone.dtype, device=backbone.device)
                    for width in widths
                )

    @property
    def spare(self) -> int:
        """The place for what nobody reads."""
        return self.count * self.columns

    def put(self, module: nn.Module, places: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps keys and values (L, H_kv, D) at their places (L,); returns all that are kept."""
        held = self.held[module]
        for kept, new in zip(held, (key, value), strict=True):
            kept.index_copy_(0, places, new)
        return held

    def take(self, other: Slots, moves: Sequence[tuple[int, int, int]]) -> None:
        """Copies rows from another one's slots. moves: (its slot, the slot here, columns) of each."""
        for module, held in self.held.items():
            for kept, old in zip(held, other.held[module], strict=True):
                for theirs, ours, columns in moves:
                    begin, end = ours * self.columns, theirs * other.columns
                    kept[begin : begin + columns] = old[end : end + columns]


class Prefixed(NamedTuple):
    """Where the M keys of a pass come from, of rows with trained prefixes before them."""

    own: Tensor
    """(M,) int64: the column of each key; any where it is a prefix's."""
    inverse: Tensor
    """(K * S,) int64: where each column's key stands."""
    slots: Tensor
    """int64: where the prefixes' keys stand, member by member, row by row; of rows that are missing, where nobody reads."""
    rows: int
    """R: of each member."""


class Segments(NamedTuple):
    """Where each row begins in the K * S columns; the same tensors are filled anew for each batch."""

    starts: Tensor
    """(G + 1,) int32"""
    longest: int
    starts_k: Tensor
    """(G + 1,) int32, with the prefix of each row before it; without prefixes, as `starts`."""
    longest_k: int
    prefixed: Prefixed | None = None
    """Where keys stand among those of prefixes; None: no prefixes."""
    slots: Slots | None = None
    """Where keys and values are kept from pass to pass; then starts_k has (G,) places in it, of each row's first key."""
    counts: Tensor | None = None
    """(G,) beside slots: how many keys each row has, this pass's among them."""
    places: Tensor | None = None
    """(L,) beside slots: where each column's key goes."""


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> Result:
    """query: (K, H, S, D), key and value: (K, H_kv, S, D). Returns (K, S, H, D)."""
    # Nobody made a mask for it (`_no_mask`), so one that comes is the attention's own (Doge's).
    if wrong := [
        name for name, x in {"attention_mask": attention_mask, **more}.items() if name in _UNKNOWN and x is not None
    ]:
        raise UnsupportedError(f"packed rows do not know {wrong[0]}, which {type(module).__name__} adds to its scores")
    causal = more.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
    segments: Segments = module.__dict__[_SEGMENTS]
    members, heads, columns, width = query.shape
    prefixes = wanted(module, members)
    before, trained = (prefixes, None) if isinstance(prefixes, Before) else (None, prefixes)
    window = more.get("sliding_window") or 0
    reach = segments.longest if segments.slots is None else segments.slots.columns
    if 0 < window < reach and (trained is not None or not causal):
        raise UnsupportedError("packed rows do not know a sliding window beside a trained prefix, or in an encoder")
    starts_k, longest_k = segments.starts, segments.longest
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    if trained is not None:
        assert segments.prefixed is not None, "the layout has room for prefixes wherever a task has one"
        starts_k, longest_k = segments.starts_k, segments.longest_k
        k = _with_prefix([(part.rows, part.key) for part in trained], key, segments.prefixed)
        v = _with_prefix([(part.rows, part.value) for part in trained], value, segments.prefixed)
    if segments.slots is not None:
        assert segments.places is not None
        k, v = segments.slots.put(module, segments.places, k, v)
        starts_k = segments.starts_k
    found = segment_attention(
        q,
        k,
        v,
        segments.starts,
        starts_k,
        segments.longest,
        longest_k,
        causal=causal,
        scale=more.get("scaling") or width**-0.5,
        window=window if window < reach else 0,
        before=before,
        counts=segments.counts,
    )
    return found.view(members, columns, heads, -1), None


def _with_prefix(parts: Sequence[tuple[int, Tensor | None]], own: Tensor, where: Prefixed) -> Tensor:
    """Members and their prefixes (n or 1, H, P, D), and (K, H, S, D) -> (M, H, D): each row's keys with the prefix before them."""
    fresh = []
    for count, prefix in parts:
        if prefix is not None:
            each = prefix.to(own.dtype).transpose(1, 2).expand(count, -1, -1, -1)
            fresh.append(each[:, None].expand(-1, where.rows, -1, -1, -1).flatten(0, 2))
    return _Prefixed.apply(own.transpose(1, 2).flatten(0, 1), torch.cat(fresh), where.own, where.inverse, where.slots)  # type: ignore[return-value]


class _Prefixed(torch.autograd.Function):
    """Each number comes from one place and has gone to one, so gradients are read, not added up, which takes ten times as long."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, fresh: Tensor, source: Tensor, inverse: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(inverse, slots)
        return own.index_select(0, source).index_copy_(0, slots, fresh)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inverse, slots = ctx.saved_tensors
        return grads[0].index_select(0, inverse), grads[0].index_select(0, slots), None, None, None


def _no_mask(*_args: Any, **_more: Any) -> None:
    """Segments say all that a mask would."""


def register() -> None:
    """Makes the name known to transformers. May be called again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _no_mask)


@contextmanager
def packed(backbone: Backbone, segments: Segments) -> Iterator[None]:
    """The backbone's calls meanwhile are of packed rows. UnsupportedError where it does not call transformers' attention interface,
    or has more than one sort of attention."""
    sites = [site for site in backbone.sites if site.role is Role.KV]
    if not sites or backbone.kind == "encoder-decoder":
        raise UnsupportedError(
            f"packed rows need one stack that calls transformers' attention interface; {backbone.name!r} has not"
        )
    if not backbone.attends_only:  # its rows would see each other
        raise UnsupportedError(f"packed rows are kept apart in attention, and {backbone.name!r} has layers without it")
    register()
    modules = [backbone.base.get_submodule(site.module) for site in sites]
    before: Any = backbone.model.config._attn_implementation
    for module in modules:
        module.__dict__[_SEGMENTS] = segments
    backbone.attention.switch(NAME)
    try:
        if backbone.model.config._attn_implementation != NAME:  # its rows would see each other
            raise UnsupportedError(f"{backbone.name!r} does not call transformers' attention interface")
        calls = [call for layers in backbone.joined for call in layers.calls]
        with computing([*backbone.plain.own, *backbone.left_to_norms, *calls]), turning():
            yield
    finally:
        backbone.attention.switch(before)
        for module in modules:
            del module.__dict__[_SEGMENTS]
