"""Stages: runs that are begun together, trained in packs, and written down as they end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intarsia.backbone import Backbone
from intarsia.workflow.compare.choosing import FINAL
from intarsia.workflow.compare.costing import Costing
from intarsia.workflow.compare.expansion import Candidate, member, slug
from intarsia.workflow.compare.ledger import Event, Ledger
from intarsia.workflow.compare.live import View
from intarsia.workflow.compare.packs import Packs, disk_failed, packs_of, raise_disk_error
from intarsia.workflow.compare.settings import CompareSettings
from intarsia.workflow.compare.testing import RUNS, result_of
from intarsia.workflow.trained import Trained


class Stages:
    """What has been begun and what has ended; the ledger holds all of it."""

    def __init__(
        self,
        settings: CompareSettings,
        ledger: Ledger,
        view: View,
        backbone: Backbone,
        packs: Packs,
        costing: Costing,
        sign: float,
    ) -> None:
        """sign: -1 where a lower score is better."""
        self.settings, self.ledger, self.view = settings, ledger, view
        self.backbone, self.packs, self.costing, self.sign = backbone, packs, costing, sign
        self._timed = not ledger.events
        """Whether the next pack begins at its first step: one that is gone on with says nothing of the pace."""

    def begun(self, stage: str) -> Event | None:
        """The stage, if it has begun."""
        return next((event for event in self.ledger.all("stage") if event["stage"] == stage), None)

    def begin(
        self, stage: str, steps: Mapping[Candidate, int], seeds: Sequence[int], candidates: Sequence[Candidate]
    ) -> None:
        """Writes down which runs it has: each candidate with its steps, once for each seed."""
        costs = self.costing.costs(candidates)
        members = [
            {
                "run": slug(f"{stage} {one.name} seed {seed}"),
                "candidate": one.name,
                "seed": seed,
                "steps": count,
                "evaluations": costs[one.shape].evaluations(count),
                "full_steps": one.steps,
            }
            for seed in seeds
            for one, count in steps.items()
        ]
        self.ledger.add("stage", stage=stage, members=members)

    def run(self, stage: str, candidates: Sequence[Candidate]) -> None:
        """Trains the runs of a stage that have not ended, in packs."""
        event = self.begun(stage)
        assert event is not None
        known = {one.name: one for one in candidates}
        members = [one for one in event["members"] if one["candidate"] in known]
        self.view.stage(stage, members, higher=self.sign > 0)
        done = {run["run"] for sort in ("run", "failed") for run in self.ledger.all(sort)}
        memory = {one["run"]: self.costing.memory(known[one["candidate"]].shape) for one in members}
        for pack in packs_of(members, memory, self.backbone.device):
            if not (todo := [one for one in pack if one["run"] not in done]):
                continue
            costs = self.costing.costs(candidates)
            promised = sum(costs[known[one["candidate"]].shape].seconds(one["steps"]) for one in todo)
            began = self.ledger.spent()
            self._train(stage, todo, known, self.costing.deadline(candidates, promised))
            if self._timed:
                self.costing.took(self.ledger.spent() - began, promised)
            self._timed = True

    def values(self, stage: str) -> dict[str, float]:
        """Of a rung: larger is better; a run that failed has none."""
        return {run["candidate"]: self.sign * run["value"] for run in self.ledger.all("run") if run["stage"] == stage}

    def _train(self, stage: str, todo: Sequence[Event], known: Mapping[str, Candidate], deadline: float | None) -> None:
        runs = [
            member(
                self.settings,
                known[one["candidate"]],
                folder=self.settings.base.out / RUNS / one["run"],
                seed=one["seed"],
                steps=one["steps"],
                evaluations=one["evaluations"],
            )
            for one in todo
        ]

        steps = {run.name: one["steps"] for run, one in zip(runs, todo, strict=True)}
        last = {run.name: (self.ledger.spent(), 0) for run in runs}

        def prune(name: str, step: int, value: float | None) -> bool:
            if value is None:
                return deadline is not None and self.ledger.spent() > deadline
            self.ledger.add("evaluated", run=name, step=step, value=value)
            self.view.evaluated(name, step, value)
            (then, before), now, total = last[name], self.ledger.spent(), steps[name]
            last[name] = now, step
            # Better here than one evaluation more a little later: it counts when the next one would be.
            ahead = min(step - before, total - step) / max(1, step - before)
            return deadline is not None and now + ahead * (now - then) > deadline

        results = self.packs(runs, resume=True, score_test=False, backbone=self.backbone, prune=prune)
        for one, run, result in zip(todo, runs, results, strict=True):
            if not disk_failed(result):
                self._record(stage, one, run.out, result)
        raise_disk_error(results)

    def _record(self, stage: str, one: Event, folder: Path, result: Any) -> None:
        facts = {"stage": FINAL if stage.startswith(FINAL) else stage}
        facts |= {key: one[key] for key in ("run", "candidate", "seed", "full_steps")}
        if not isinstance(result, Trained):
            self.ledger.add("failed", **facts, message=result.message)
            self.view.ended(one["run"], None)
            return
        ended = result_of(folder)
        kept = {key: ended[key] for key in ("steps", "epochs", "best_step", "stopped", "metrics")}
        self.ledger.add("run", **facts, value=ended["best"], **kept, parameters=result.parameters, bytes=result.size)
        self.view.ended(one["run"], ended["best"])
