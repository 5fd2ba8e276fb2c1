"""How a comparison spends its time: successive halving over the candidates, then over the methods with a fresh seed each time.

Rungs. All candidates train for a short while with one seed; the best third goes on to a run three times as long, and so on
(successive halving: Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943). A rung keeps each method's best candidate:
which learning rate is a question within a method. Every run has a schedule of its own, warm-up and decay included, so that
rungs compare trained models and not models on their way; the price is that a survivor starts again.

Waves. The best candidate of each method trains at full length, once for each seed. Where time is short the better half goes on
from wave to wave, and full fine-tuning, by which the others are measured.

Length. All runs see the same number of rows, each method at most those of its recipe; so many that the whole fits. Where that
would leave too little of a run, sizes, learning rates and methods are given up first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.workflow.compare.expansion import Candidate, families

KEEP = 3
"""A rung's best 1 / KEEP go on, to runs KEEP times as long."""
WORTHWHILE, WORTHWHILE_RUNG = 0.12, 0.04
"""Share of a recipe's length, of the final runs and of those of the first rung, below which other things are given up first."""
LEAST_STEPS = 10
EVALUATING = 0.15
"""Share of a run's steps that its evaluations may cost in time."""
MOST_EVALUATIONS = 8
BASELINE = "full"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Seconds that a run takes by itself."""

    start: float
    """Building, saving and whatever else is there once."""
    step: float
    evaluation: float

    def evaluations(self, steps: int) -> int:
        """So many that they cost little beside the steps; one at least."""
        worth = int(EVALUATING * steps * self.step / max(self.evaluation, 1e-9))
        return max(1, min(MOST_EVALUATIONS, worth, steps))

    def seconds(self, steps: int) -> float:
        """Of one run."""
        return self.start + steps * self.step + self.evaluations(steps) * self.evaluation


Costs = Mapping[str, Cost]
"""By the candidate's shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is tried, and how far it goes."""

    candidates: tuple[Candidate, ...]
    rungs: tuple[int, ...]
    """Candidates in each rung; none where there is one candidate a method."""
    waves: tuple[int, ...]
    """Methods that train with each seed."""

    def after(self, rungs: int, entrants: Sequence[Candidate]) -> "Plan":
        """What is left of it when so many rungs are done."""
        return replace(self, candidates=tuple(entrants), rungs=self.rungs[rungs:])

    def rung_steps(self, candidate: Candidate, most: int) -> int:
        """Of a run in its first rung, where the final ones have at most so many steps."""
        return max(_least(candidate), round(min(candidate.steps, most) / KEEP ** len(self.rungs)))

    def seconds(self, costs: Costs, most: int) -> float:
        """Of the whole, where final runs have at most so many steps. Who survives is not known: a rung's runs cost the mean of
        all candidates, the final ones are the dearest methods'."""
        total = 0.0
        for index, count in enumerate(self.rungs):
            rest = self.after(index, self.candidates)
            each = [costs[c.shape].seconds(rest.rung_steps(c, most)) for c in self.candidates]
            total += count * sum(each) / len(each)
        dearest: dict[str, float] = {}
        for c in self.candidates:
            dearest[c.family] = max(dearest.get(c.family, 0.0), costs[c.shape].seconds(steps_at(c, most)))
        final = sorted(dearest.values(), reverse=True)
        return total + sum(sum(final[:count]) for count in self.waves)


def steps_at(candidate: Candidate, most: int) -> int:
    """Of a final run."""
    return max(_least(candidate), min(candidate.steps, most))


def _least(candidate: Candidate) -> int:
    return min(LEAST_STEPS, candidate.steps)


def plan(candidates: Sequence[Candidate], costs: Costs, seeds: int, seconds: float | None) -> tuple[Plan, int] | None:
    """The most ambitious plan that takes at most so many seconds (None: all that one could wish for), and the most steps of a
    final run. None where there is not even time for the least.

    candidates: the best guesses first.
    """
    methods, whole = len(families(candidates)), max(one.steps for one in candidates)
    every = (methods,) * seeds
    if seconds is None:
        return planned(candidates, every), whole
    race, levels = halved(methods, seeds), max(one.level for one in candidates)
    tries = [(levels, every), (2, every), (2, race), (1, race), (0, race), (0, halved(min(methods, 3), seeds))]
    found = None
    for level, waves in tries:
        kept = [one for one in candidates if one.level <= level]
        one = planned(kept, waves)
        most = longest(lambda most, one=one: one.seconds(costs, most), whole, seconds)
        if most is None:
            continue
        found, recipe = (one, most), min(c.steps for c in kept)
        if most >= WORTHWHILE * recipe and most / KEEP ** len(one.rungs) >= WORTHWHILE_RUNG * recipe:
            break
    return found


def least(candidates: Sequence[Candidate], costs: Costs, seeds: int) -> float:
    """Seconds of the shortest comparison that there is a plan for."""
    kept = [one for one in candidates if one.level == 0]
    return planned(kept, halved(min(len(families(kept)), 3), seeds)).seconds(costs, 1)


def planned(candidates: Sequence[Candidate], waves: tuple[int, ...]) -> Plan:
    """The rungs that lead from the candidates to one a method, or to the first wave."""
    methods, size, rungs = len(families(candidates)), len(candidates), []
    while size > waves[0]:
        rungs.append(size)
        size = max(math.ceil(size / KEEP), methods) if size > methods else waves[0]
    return Plan(candidates=tuple(candidates), rungs=tuple(rungs), waves=waves)


def halved(methods: int, seeds: int) -> tuple[int, ...]:
    """Methods in each wave where the better half goes on; two at least, if there are two."""
    waves = [methods]
    while len(waves) < seeds:
        waves.append(min(methods, max(2, math.ceil(waves[-1] / 2))))
    return tuple(waves)


def longest(seconds: Callable[[int], float], whole: int, limit: float) -> int | None:
    """The most steps, up to `whole`, at which `seconds(steps)` is within the limit; None: there are none."""
    if seconds(1) > limit:
        return None
    low, high = 1, whole
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds(middle) <= limit else (low, middle - 1)
    return low


def promoted(candidates: Sequence[Candidate], values: Mapping[str, float], count: int) -> list[Candidate]:
    """Those that go on, the best first. values: by the candidate's name, larger is better; one without is out.

    The best of each method come before others, and full fine-tuning before all of them: it is what they are measured by.
    """
    there = sorted((c for c in candidates if c.name in values), key=lambda c: -values[c.name])
    leaders: list[Candidate] = []
    for one in there:
        if one.family not in families(leaders):
            leaders.append(one)
    leaders.sort(key=lambda one: (one.family != BASELINE or count < 2, -values[one.name]))
    chosen = [*leaders, *(one for one in there if one not in leaders)][:count]
    return sorted(chosen, key=lambda one: -values[one.name])
