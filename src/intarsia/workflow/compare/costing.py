"""What the shapes of a comparison cost, and how much of its time is left."""

import math
from collections.abc import Sequence

import torch

from intarsia.backbone import Backbone
from intarsia.errors import ConfigError
from intarsia.workflow.compare import probing
from intarsia.workflow.compare.budget import Cost, halved, least
from intarsia.workflow.compare.expansion import Candidate, families, member
from intarsia.workflow.compare.ledger import Event, Ledger
from intarsia.workflow.compare.live import View
from intarsia.workflow.compare.packs import Packs, raise_disk_error
from intarsia.workflow.compare.settings import CompareSettings
from intarsia.workflow.trained import Trained

SPARE = 0.93
"""Share of the time left that is planned with: rather early than late."""
WRITING = 5.0
"""Seconds that are kept for the report."""


class Costing:
    """Probes, the pace, and the budget. What it knows is in the ledger."""

    def __init__(
        self,
        settings: CompareSettings,
        ledger: Ledger,
        view: View,
        backbone: Backbone,
        packs: Packs,
        tested: float,
    ) -> None:
        """tested: rows of the test split for each one of the validation split."""
        self.settings, self.ledger, self.view, self.backbone, self.packs = settings, ledger, view, backbone, packs
        self.tested, self._warm = tested, False

    def probe(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Measures a few steps of each shape that has not been; returns those that can be run.

        The baselines that copy weights come last, as they leave most memory behind.
        """
        known = {event["shape"] for event in self.ledger.all("probe")}
        wanted = {one.shape: one for one in reversed(candidates) if one.shape not in known}
        waiting = sorted(wanted.values(), key=lambda one: one.family in ("full", "top-layers"))
        while waiting:
            one = waiting.pop(0)
            if not self._warm:  # what a process does once would be counted as this shape's
                self._probed(one)
                self._warm = True
            began = self.ledger.spent()
            self._measure(one)
            self._check_time((self.ledger.spent() - began) * len(waiting), candidates)
        return self.without_left_out(candidates)

    def _check_time(self, timing: float, candidates: Sequence[Candidate]) -> None:
        """ConfigError as soon as it shows that timing alone, which takes so many seconds yet, uses up the budget."""
        budget, spent = self.settings.budget, self.ledger.spent()
        if budget is None or self.ledger.last("plan") or not self.ledger.last("probe") or spent + timing <= budget:
            return
        raise ConfigError(
            f"timing {len(families(candidates))} methods takes about {spent + timing:.0f} s here, and the budget is {budget:.0f}; "
            f"give more time (--resume --budget {self.needed(candidates, timing)} goes on), or fewer methods"
        )

    def needed(self, candidates: Sequence[Candidate], timing: float = 0.0) -> str:
        """A budget for the shortest comparison, what is spent included, as `--budget` takes it. timing: seconds that are to be
        spent before it."""
        costs = self.costs(candidates)
        seconds = least(candidates, costs, self.settings.seeds) / SPARE + self._scoring(candidates) + WRITING
        return f"{math.ceil((self.ledger.spent() + timing + seconds) / 60)}m"

    def unknown(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The first candidate of each method of which no size has been probed."""
        known = {event["shape"] for event in self.ledger.all("probe")}
        probed = {one.family for one in candidates if one.shape in known}
        return list({one.family: one for one in reversed(candidates) if one.family not in probed}.values())

    def leave_out(self, one: Candidate, why: str) -> None:
        """Its shape cannot be run here."""
        self.view.say(f"{one.shape} is left out: {why}")
        self.ledger.add("left out", shape=one.shape, why=why)

    def without_left_out(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The others."""
        left = {event["shape"] for event in self.ledger.all("left out")}
        return [one for one in candidates if one.shape not in left]

    def _measure(self, one: Candidate) -> None:
        before, found = probing.in_use(self.backbone.device), self._probed(one)
        if isinstance(found, str):
            self.leave_out(one, found)
            return
        cost, memory = found
        self.view.say(f"{one.shape}: {cost.step * 1000:.0f} ms a step, {cost.evaluation:.1f} s an evaluation")
        self.ledger.add(
            "probe",
            shape=one.shape,
            start=cost.start,
            step=cost.step,
            evaluation=cost.evaluation,
            memory=memory,
            before=before,
        )

    def _probed(self, one: Candidate) -> tuple[Cost, int | None] | str:
        """What it costs and the memory it takes, or why it cannot be run."""
        folder, steps = self.ledger.path.parent / "probe", min(probing.STEPS, one.steps)
        run, failed = member(self.settings, one, folder=folder, seed=0, steps=steps, evaluations=1), []

        def train() -> None:
            (result,) = self.packs([run], score_test=False, backbone=self.backbone)
            raise_disk_error([result])
            if not isinstance(result, Trained):
                failed.append(result.message)

        try:
            found = probing.probe(train, folder, self.backbone.device)
        except (torch.OutOfMemoryError, MemoryError):
            return "it needs more memory than there is"
        return failed[0] if failed else found or "its run left nothing"

    @property
    def pace(self) -> float:
        """Seconds that the last pack took, over those that its probes had promised."""
        last = self.ledger.last("pace")
        return 1.0 if last is None else last["pace"]

    def took(self, seconds: float, promised: float) -> None:
        """A pack took so long; promised: at the pace of before."""
        self.ledger.add("pace", pace=min(5.0, max(0.1, self.pace * seconds / max(promised, 1e-9))))

    def costs(self, candidates: Sequence[Candidate]) -> dict[str, Cost]:
        """By shape, at the present pace; one that was not probed is taken to cost what another of its method does."""
        probes = {event["shape"]: event for event in self.ledger.all("probe")}
        family = {one.shape: one.family for one in candidates}
        costs = {}
        for shape in family:
            alike = [event for name, event in probes.items() if family.get(name) == family[shape]]
            event = probes.get(shape) or max(alike or probes.values(), key=lambda event: event["step"])
            costs[shape] = Cost(**{key: event[key] * self.pace for key in ("start", "step", "evaluation")})
        return costs

    def left(self, candidates: Sequence[Candidate]) -> float | None:
        """Seconds that can be planned with, the scores on the test split and the report taken off; None without a budget."""
        if self.settings.budget is None:
            return None
        return SPARE * max(0.0, self.settings.budget - self.ledger.spent() - self._scoring(candidates) - WRITING)

    def _scoring(self, candidates: Sequence[Candidate]) -> float:
        """Seconds of the scores on the test split."""
        costs = self.costs(candidates).values()
        scored = sum(halved(len(families(candidates)), self.settings.seeds))
        return self.tested * scored * sum(cost.evaluation for cost in costs) / max(1, len(costs))

    def deadline(self, candidates: Sequence[Candidate], promised: float) -> float | None:
        """By `ledger.spent()`, when a pack is stopped whatever it has come to: half as late again as promised, and never beyond
        the budget. None without a budget."""
        left = self.left(candidates)
        if left is None:
            return None
        return self.ledger.spent() + min(left / SPARE, 1.5 * promised + 10)

    def memory(self, shape: str | None) -> int:
        """Bytes that a run of this shape takes beside what is there anyway, as far as they are known."""
        found: Event = next((event for event in self.ledger.all("probe") if event["shape"] == shape), {})
        return max(0, (found.get("memory") or 0) - (found.get("before") or 0))
