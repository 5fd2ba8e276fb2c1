"""Batches whose graphs are made before anybody waits for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from intarsia.backbone.packed import Slots
from intarsia.graphs.layout import Packed
from intarsia.graphs.sizes import longest_of, usual


def usual_batches(
    tokens: int, rows: int, longest: int, slots: Slots | None, *, prompts: bool, types: bool
) -> Iterator[Packed]:
    """One for each size that batches come in. tokens: rows times the longest of a batch at most; longest: of a row.

    slots: where texts will be written; for these only what compiles all kernels, and the passes in which each row reads one token,
    since larger slots would want all of them again. prompts: whether some rows have one, and then the first; types: whether some
    are pairs, and all have types.
    """
    sizes = list(usual(tokens, rows, longest))
    if slots is not None:
        smallest = {longest_of(max(lengths)): lengths for lengths in reversed(sizes)}
        sizes = [*smallest.values(), *([1] * count for count in (16, 32, 64) if count <= slots.count)]
    for prompted in (False, True) if prompts else (False,):
        for lengths in sizes:
            yield _batch(lengths, prompted=prompted, types=types)


def _batch(lengths: Sequence[int], *, prompted: bool, types: bool) -> Packed:
    """Rows of such lengths, of the vocabulary's first word."""
    own = np.asarray(lengths)
    ids, places = np.zeros(own.sum(), dtype=np.int64), np.arange(own.sum())
    ids[0] = -1 if prompted else 0
    positions = places - np.repeat(np.cumsum(own) - own, own)
    return Packed(ids, np.zeros_like(ids) if types else None, positions, own, places)
