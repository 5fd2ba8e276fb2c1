"""The statistics of a comparison: intervals over seeds, paired tests, the Pareto front. Pure functions of lists of numbers."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds."""

    mean: float
    half: float | None
    """Half the width of Student's t interval at 95 %; None of a single value."""
    std: float | None
    count: int


def interval(values: Sequence[float]) -> Interval:
    """The mean with its 95 % interval (Student's t over the values, n - 1 degrees of freedom)."""
    from scipy.stats import t

    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Interval(mean, None, None, n)
    std = statistics.stdev(values)
    return Interval(mean, float(t.ppf(0.975, n - 1)) * std / math.sqrt(n), std, n)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One method's scores against the baseline's."""

    mean: float
    half: float | None
    """Half the width of its 95 % interval."""
    p: float | None
    """Two-sided; None where it cannot be had: fewer than two seeds, or no spread at all."""
    test: str
    """Which test, in words."""


def difference(mine: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Scores by seed against the baseline's by seed: paired where two seeds or more are common, else Welch's test."""
    from scipy.stats import t, ttest_ind

    common = sorted(mine.keys() & baseline.keys())
    if len(common) >= 2:
        found = interval([mine[seed] - baseline[seed] for seed in common])
        test = f"paired t-test over {len(common)} seeds"
        if not found.std or found.std < 1e-12:  # equal gaps, up to rounding
            return Difference(mean=found.mean, half=None, p=1.0 if found.mean == 0 else None, test=test)
        statistic = found.mean / (found.std / math.sqrt(found.count))
        p = 2 * float(t.sf(abs(statistic), found.count - 1))
        return Difference(mean=found.mean, half=found.half, p=p, test=test)
    a, b = list(mine.values()), list(baseline.values())
    mean = statistics.fmean(a) - statistics.fmean(b)
    if len(a) < 2 or len(b) < 2 or not (statistics.stdev(a) or statistics.stdev(b)):
        return Difference(mean=mean, half=None, p=None, test="no test: too few seeds")
    welch: Any = ttest_ind(a, b, equal_var=False)
    bounds = welch.confidence_interval(0.95)
    half = float(bounds.high - bounds.low) / 2
    return Difference(mean=mean, half=half, p=float(welch.pvalue), test="Welch's t-test, no common seeds")


def proportion_error(share: float, count: int) -> float:
    """Standard error of a share of `count` rows, with two rows more of each kind (Agresti and Coull 1998): a few rows that are all
    right are no certainty."""
    share = (share * count + 2) / (count + 4)
    return math.sqrt(share * (1 - share) / (count + 4))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p values corrected for so many comparisons (Holm 1979); those that are None stay so."""
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i] or 0.0)
    corrected: list[float | None] = [None] * len(ps)
    least = 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * (ps[i] or 0.0)))
        corrected[i] = least
    return corrected


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Of (cost, score) points the indices of those that none beats at its cost or below, from the cheapest on."""
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front
