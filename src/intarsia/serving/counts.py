"""What the engine counts, in plain numbers; whoever is asked for metrics reads them."""

from bisect import bisect_left
from collections import Counter

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """How many values were at most each bound; the last count is of all that were above."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """One more value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Counts:
    """Since the engine was made."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        """By kind (classify, tag, generate) and outcome (ok, failed, cancelled, refused, late)."""
        self.tokens_in = 0
        self.tokens_out = 0
        self.seconds = Histogram(SECONDS)
        """From submit to the last event."""
        self.rows = Histogram(ROWS)
        """Of each forward pass of classification."""
