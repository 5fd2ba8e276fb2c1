"""Splitting rows: a seeded stratified share for validation, and the fixed split of the embedded sets by a hash."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np

from intarsia.data.spec import Rows
from intarsia.errors import DataError

TENTHS = ("train",) * 8 + ("validation", "test")


def set_aside(rows: Rows, kind: str, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """(train, validation): about `fraction` of the rows of every class go to validation, a function of `seed` alone.

    Classes too small for a row of their own give that share together, one text each at most. Rows with equal text stay
    together, or validation would score what was trained on. A class of one text stays in train. Only classification has
    classes to stratify by; other kinds are drawn from all rows.
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, texts in enumerate(rows.texts):
        groups[texts].append(row)
    classes: dict[int, list[list[int]]] = defaultdict(list)
    for group in groups.values():
        classes[rows.labels[group[0]] if kind == "classification" and rows.labels is not None else 0].append(group)
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    small: list[list[list[int]]] = []
    for label in sorted(classes):
        members = classes[label]
        count = min(round(len(members) * fraction), len(members) - 1)
        chosen += [row for i in rng.permutation(len(members))[:count] for row in members[i]]
        if not count and len(members) > 1:
            small.append(members)
    share = min(round(sum(map(len, small)) * fraction), len(small))
    for i in rng.permutation(len(small))[:share]:
        chosen += small[i][int(rng.integers(len(small[i])))]
    if not chosen:  # so few rows that every share rounded to none
        largest = max(classes.values(), key=len)
        if len(largest) < 2:
            of = f" for each of the {len(classes)} labels" if len(classes) > 1 else ""
            raise DataError(f"there is one training text{of}, so none can be set aside; give a validation file")
        chosen = largest[int(rng.integers(len(largest)))]
    aside = set(chosen)
    return rows.take([row for row in range(len(rows)) if row not in aside]), rows.take(sorted(aside))


def split_of(text: str) -> str:
    """train, validation or test (8 : 1 : 1), fixed by the text alone; case and spacing do not matter."""
    digest = hashlib.sha256(" ".join(text.casefold().split()).encode()).digest()
    return TENTHS[int.from_bytes(digest[:8], "big") % 10]
