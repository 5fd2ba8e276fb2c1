"""From rows of tokens to one long row, on the CPU. B rows, T columns of a padded batch, n tokens and virtual tokens in all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Packed(NamedTuple):
    """A batch's tokens and virtual tokens, row by row."""

    ids: np.ndarray
    """(n,); -1 - j: virtual token j."""
    types: np.ndarray | None
    positions: np.ndarray
    """(n,), counted from 0 in each row."""
    lengths: np.ndarray
    """(B,), prompts included."""
    columns: np.ndarray
    """Of each token: where its state is."""

    @property
    def owner(self) -> np.ndarray:
        """(n,): each column's row."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def starts(self) -> np.ndarray:
        """(B,): each row's first column."""
        return np.cumsum(self.lengths) - self.lengths


def pack(
    ids: np.ndarray,
    types: np.ndarray | None,
    lengths: np.ndarray,
    prompts: np.ndarray,
    places: Sequence[str],
    *,
    after: bool,
) -> Packed:
    """ids, types: of all rows' tokens, one row behind the other; lengths: (B,) tokens of each; prompts: (B,) virtual tokens;
    places: where they stand ("" for none). after: a last token's state is read after a prompt that follows it (decoders)."""
    columns = tokens = np.arange(len(ids))
    inserted = np.where(np.asarray(places) == "template", 0, prompts)
    if inserted.any():
        ends = np.cumsum(lengths)
        cut = {"start": ends - lengths, "after-first": ends - lengths + 1, "end": ends}
        begins = np.array([cut.get(place, ends)[row] for row, place in enumerate(places)])
        where = np.repeat(begins, inserted)
        virtual = -1 - (np.arange(len(where)) - np.repeat(np.cumsum(inserted) - inserted, inserted))
        order = np.argsort(where, kind="stable")
        columns = tokens + np.searchsorted(where[order], tokens, side="right")
        ids = np.insert(ids, where[order], virtual[order])
        types = None if types is None else np.insert(types, where[order], 0)
        if after:
            last = np.asarray(places) == "end"
            columns[ends[last] - 1] += inserted[last]
        lengths = lengths + inserted
    positions = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Packed(ids, types, positions, lengths, columns)


def pack_rows(
    ids: np.ndarray,
    mask: np.ndarray,
    types: np.ndarray | None,
    prompts: np.ndarray,
    places: Sequence[str],
    *,
    after: bool,
) -> tuple[Packed, np.ndarray]:
    """As `pack`, of a padded batch: ids, mask and types (B, T). Also (B * T,): the column whose state is read for each of its
    tokens; a row's first for padding."""
    real = np.flatnonzero(mask)
    own = None if types is None else types.ravel()[real]
    made = pack(ids.ravel()[real], own, mask.sum(1).astype(np.int64), prompts, places, after=after)
    back = np.repeat(made.starts, mask.shape[1])
    back[real] = made.columns
    return made, back
