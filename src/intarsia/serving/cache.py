"""Keys and values of texts that are being written, in rows that end in the same column.

Each row's tokens stand on the right; what is left of them is padding, hidden by the mask. So one step writes one column for all
rows, a new row joins whatever its length, and windows and relative positions count as they do for a row alone. Layers with a
sliding window keep all columns too: the mask hides what has left the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
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
        """A layer that holds these."""
        layer = cls()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        return layer


def new_cache() -> Cache:
    """An empty one."""
    return Cache(layer_class_to_replicate=RoomyLayer)


def merged(parts: Sequence[tuple[Cache, Tensor]], columns: int) -> Cache:
    """One cache of the chosen rows of several, right-aligned in so many columns.

    parts: a cache and (B',) the rows of it that are kept, each with at least their tokens' columns; the rows follow one another.
    """
    layers = []
    for index in range(len(parts[0][0].layers)):
        sides = []
        for side in ("keys", "values"):
            pieces = [getattr(cache.layers[index], side)[rows] for cache, rows in parts]
            whole = pieces[0].new_zeros(sum(map(len, pieces)), pieces[0].shape[1], columns, pieces[0].shape[3])
            row = 0
            for piece in pieces:
                taken = piece[:, :, -columns:]
                whole[row : row + len(piece), :, columns - taken.shape[2] :] = taken
                row += len(piece)
            sides.append(whole)
        layers.append(RoomyLayer.of(*sides))
    cache = new_cache()
    cache.layers = layers
    return cache


def merged_masks(parts: Sequence[tuple[Tensor, Tensor]], columns: int) -> Tensor:
    """The masks (B, T) of the chosen rows likewise, as one (B, columns)."""
    pieces = [mask[rows][:, -columns:] for mask, rows in parts]
    return torch.cat([torch.nn.functional.pad(piece, (columns - piece.shape[1], 0)) for piece in pieces])
