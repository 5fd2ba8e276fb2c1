"""Keys and values of texts that are being written, in rows that end in the same column.

Each row's tokens stand on the right; what is left of them is padding, hidden by the mask. So one step writes one column for all
rows, a new row joins whatever its length, and windows and relative positions count as they do for a row alone. Layers with a
sliding window keep all columns too: the mask hides what has left the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

CHUNK = 64
"""Columns by which a layer grows: a step writes one in place, and copies everything only once in so many."""


class RoomyLayer(DynamicLayer):
    """Keys and values (B, H, T, D) as views of tensors with free columns behind them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes behind the last column; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        stop = held + key_states.shape[2]
        if self._room is None or stop > self._room[0].shape[2]:
            self._room = (self._wider(self.keys, key_states, stop), self._wider(self.values, value_states, stop))
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, held:stop] = new
        self.keys, self.values = (room[:, :, :stop] for room in self._room)
        return self.keys, self.values

    @staticmethod
    def _wider(old: Tensor | None, new: Tensor, stop: int) -> Tensor:
        room = new.new_zeros(*new.shape[:2], stop + CHUNK, new.shape[3])
        if old is not None and old.numel():
            room[:, :, : old.shape[2]] = old
        return room

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> RoomyLayer:
        """A layer over these (B, H, T + CHUNK, D), whose last CHUNK columns are free."""
        layer = cls()
        layer.lazy_initialization(keys, values)
        layer._room = (keys, values)
        layer.keys, layer.values = (room[:, :, : room.shape[2] - CHUNK] for room in layer._room)
        return layer


Part = tuple[Cache, Tensor, Tensor]
"""A cache, (B',) its rows that are taken, each with at least its tokens' columns, and (B',) where they go."""


def new_cache() -> Cache:
    """An empty one."""
    return Cache(layer_class_to_replicate=RoomyLayer)


def merged(parts: Sequence[Part], columns: int) -> Cache:
    """One cache of the chosen rows of several, right-aligned in so many columns."""
    cache = new_cache()
    for layer in range(len(parts[0][0].layers)):
        keys, values = (
            _merged_side([(_held(own, layer, side), taken, places) for own, taken, places in parts], columns)
            for side in ("keys", "values")
        )
        cache.layers.append(RoomyLayer.of(keys, values))
    return cache


def _held(cache: Cache, layer: int, side: str) -> Tensor:
    return getattr(cache.layers[layer], side)


def _merged_side(parts: Sequence[tuple[Tensor, Tensor, Tensor]], columns: int) -> Tensor:
    """(B, H, columns + CHUNK, D), with free columns at the end: a merge is the one time that its rows are copied."""
    first = parts[0][0]
    rows = sum(len(taken) for _, taken, _ in parts)
    whole = first.new_zeros(rows, first.shape[1], columns + CHUNK, first.shape[3])
    for held, taken, places in parts:
        piece = held[:, :, -columns:]
        whole[places, :, columns - piece.shape[2] : columns] = piece[taken]
    return whole


def merged_masks(parts: Sequence[tuple[Tensor, Tensor, Tensor]], columns: int) -> Tensor:
    """The masks (B', T) of the chosen rows likewise, as one (B, columns)."""
    whole = parts[0][0].new_zeros(sum(len(taken) for _, taken, _ in parts), columns)
    for mask, taken, places in parts:
        piece = mask[:, -columns:]
        whole[places, columns - piece.shape[1] :] = piece[taken]
    return whole
