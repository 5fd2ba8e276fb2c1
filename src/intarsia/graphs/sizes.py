"""The sizes that passes are made in: few, so that one that has been made serves most batches. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

LONGEST = 256
"""Tokens of a row beyond which kernels for long sequences are the better ones, and launches matter less."""
LEAST = 16
"""Columns, rows and longest row of the smallest pass."""
_ROWS = (LEAST, 32, 64, 256)
_LONGEST = (LEAST, 64, 128, LONGEST)
"""Programs for rows and tokens that are not there end at once. 128 is a usual window, which shorter rows do not feel."""
_SHORTEST = 3
"""Tokens of a usual text, with those that frame it."""
_UNEVEN = 4
"""How much longer than the mean the longest row of a usual batch is, at most."""


def columns_of(tokens: int) -> int:
    """At most an eighth more, or what makes no difference."""
    if tokens <= 2048:
        return next(size for size in (16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048) if tokens <= size)
    step = 1 << ((tokens - 1).bit_length() - 4)
    return -(-tokens // step) * step


def rows_of(rows: int) -> int:
    """How many there is room for."""
    return _next(_ROWS, rows)


def longest_of(tokens: int) -> int:
    """1: rows that are being written, whose newest token is read."""
    return 1 if tokens == 1 else _next(_LONGEST, tokens)


def usual(tokens: int, rows: int, longest: int) -> Iterator[list[int]]:
    """The lengths of the rows of a batch for each size that batches come in. tokens: rows times the longest; longest: of a row."""
    sizes = [LEAST]
    while sizes[-1] < tokens:
        sizes.append(columns_of(sizes[-1] + 1))
    for above, columns in _steps(sizes):
        for fewer, most in _steps(_ROWS):
            for shorter, length in _steps(_LONGEST):
                count = max(fewer + 1, -(-(above + 1) // length))
                total = max(above + 1, max(_SHORTEST, shorter + 1) + (count - 1) * _SHORTEST)
                first = max(shorter + 1, -(-total // count), _SHORTEST)
                if count > min(rows, most) or total > columns or first > min(length, longest):
                    continue
                if count * first <= min(tokens, _UNEVEN * total):
                    yield [first, *_even(total - first, count - 1)]


def _next(sizes: Sequence[int], count: int) -> int:
    return next((size for size in sizes if count <= size), 1 << (count - 1).bit_length())


def _steps(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each with the one below it."""
    return zip((0, *sizes[:-1]), sizes, strict=True)


def _even(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]
