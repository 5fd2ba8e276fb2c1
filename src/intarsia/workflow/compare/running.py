"""`compare`: probes, rungs, waves of fresh seeds, the choice, the test split, in this order; the ledger says what has been done."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from intarsia.backbone import Backbone
from intarsia.data import Splits, load_data
from intarsia.errors import ConfigError, IntarsiaError
from intarsia.methods import method_from_dict
from intarsia.training import validation_metric
from intarsia.training.metrics import higher_is_better
from intarsia.training.record import as_json, check_same, commit, hardware, versions
from intarsia.workflow.compare.budget import Plan, longest, plan, planned, promoted, steps_at
from intarsia.workflow.compare.choosing import FINAL, choose, complete
from intarsia.workflow.compare.costing import Costing
from intarsia.workflow.compare.expansion import Candidate, expand, families
from intarsia.workflow.compare.ledger import Ledger
from intarsia.workflow.compare.live import SilentView, View
from intarsia.workflow.compare.packs import Packs
from intarsia.workflow.compare.report import write_report
from intarsia.workflow.compare.settings import CompareSettings, from_mapping
from intarsia.workflow.compare.stages import Stages
from intarsia.workflow.compare.summary import Summary, summarise
from intarsia.workflow.compare.testing import score_chosen
from intarsia.workflow.pack import run_pack
from intarsia.workflow.training import load_backbone

SEARCH_SEED = 0


def compare(
    settings: CompareSettings,
    *,
    resume: bool = False,
    view: View | None = None,
    backbone: Backbone | None = None,
    began: float | None = None,
    packs: Packs = run_pack,
) -> Summary:
    """Compares methods on a task, and leaves ledger, runs, the best task and a report in `settings.base.out`.

    resume: goes on where a ledger ends; a comparison that has ended only gets its report again, and no other settings.
    backbone: one that is loaded already. began: when the command started, by time.monotonic(); the budget counts from there.
    Raises any IntarsiaError of settings, data and backbone; a run that fails is only reported. KeyboardInterrupt after
    Ctrl-C, when all has been saved.
    """
    out = settings.base.out
    with closing(Ledger(out, resume=resume, began=began)) as ledger:
        view = view or SilentView()
        if ledger.last("end"):
            _check_settings(ledger, settings)
            view.say(f"the comparison in {out} has ended; its report is written again")
        else:
            view.begin(ledger.spent, settings.budget)
            _Comparison(settings, ledger, view, backbone, packs).go()
        summary = summarise(ledger.events, out)
        write_report(summary, out)
    return summary


class _Comparison:
    def __init__(
        self, settings: CompareSettings, ledger: Ledger, view: View, backbone: Backbone | None, packs: Packs
    ) -> None:
        self.settings, self.ledger, self.view = settings, ledger, view
        self.splits: Splits = load_data(settings.base.data.spec())
        train, kind = self.splits.split("train"), self.splits.kind
        if not self.splits.validation:
            raise ConfigError("a comparison chooses by validation scores, and there are no validation rows")
        self.candidates = expand(settings, kind, len(train))
        self.metric = validation_metric(settings.base.train.metric, kind, self.splits.labels)
        self.sign = 1.0 if higher_is_better(self.metric) else -1.0
        self.backbone = backbone or load_backbone(settings.base)
        tested = len(self.splits.test or ()) / len(self.splits.validation)
        self.costing = Costing(settings, ledger, view, self.backbone, packs, tested)
        self.stages = Stages(settings, ledger, view, self.backbone, packs, self.costing, self.sign)

    def go(self) -> None:
        """All that the ledger does not hold yet."""
        self._start()
        self.candidates = self._possible()
        chosen = self._plan()
        entrants = list(chosen.candidates)
        for index, size in enumerate(chosen.rungs):
            if index:
                entrants = promoted(entrants, self.stages.values(_rung(index - 1)), size)
            self._search(_rung(index), entrants, chosen.after(index, entrants))
        if chosen.rungs:
            entrants = promoted(entrants, self.stages.values(_rung(len(chosen.rungs) - 1)), chosen.waves[0])
        self._finals(entrants, chosen.waves)
        if self.ledger.last("choice") is None:
            self.view.say(choose(self.ledger, self.sign))
        score_chosen(self.ledger, self.backbone, self.splits, self.view.say)
        self.ledger.add("end", budget=self.settings.budget)

    # -- what is tried -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        facts = {
            "settings": self.settings.plain(),
            "kind": self.splits.kind,
            "labels": list(self.splits.labels),
            "data": self.splits.fingerprint,
            "backbone": self.backbone.fingerprint,
        }
        if begun := self.ledger.last("start"):
            check_same(*(_lasting({key: x[key] for key in facts}) for x in (begun, as_json(facts))))
            return
        for note in self.splits.notes:
            self.view.say(note)
        parameters = list(self.backbone.model.parameters())
        self.ledger.add(
            "start",
            **facts,
            metric=self.metric,
            rows={name: len(getattr(self.splits, name) or ()) for name in ("train", "validation", "test")},
            notes=self.splits.notes,
            backbone_bytes=sum(p.numel() * p.element_size() for p in parameters),
            backbone_parameters=self.backbone.parameter_count(),
            device=str(self.backbone.device),
            dtype=str(self.backbone.dtype).removeprefix("torch."),
            versions=versions(),
            hardware=hardware(),
            commit=commit(),
        )

    def _possible(self) -> list[Candidate]:
        """The candidates that this backbone can do; it is said of the others why not."""
        for one in {one.shape: one for one in self.costing.without_left_out(self.candidates)}.values():
            try:
                method_from_dict(one.method).sites(self.backbone.sites)
            except IntarsiaError as error:
                self.costing.leave_out(one, str(error))
        return self._some(self.costing.without_left_out(self.candidates))

    def _some(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        if not candidates:
            why = self.ledger.last("left out") or self.ledger.last("failed") or {}
            raise ConfigError(f"none of the methods can be compared here: {why.get('why') or why.get('message')}")
        return list(candidates)

    def _plan(self) -> Plan:
        """As the ledger has it, or a new one for the time that is left."""
        if found := self.ledger.last("plan"):
            kept = tuple(one for one in self.candidates if one.name in found["candidates"])
            return Plan(candidates=kept, rungs=tuple(found["rungs"]), waves=tuple(found["waves"]))
        while firsts := self.costing.unknown(self.candidates):
            self.costing.probe(firsts)
            self.candidates = self._some(self.costing.without_left_out(self.candidates))
        left = self.costing.left(self.candidates)
        best = plan(self.candidates, self.costing.costs(self.candidates), self.settings.seeds, left)
        if best is None:
            budget = self.costing.needed(self.candidates)
            raise ConfigError(
                f"{left or 0:.0f} s are left of the budget, too few for the shortest comparison of "
                f"{', '.join(families(self.candidates))}; give more time (--resume --budget {budget} goes on), "
                "or fewer methods or seeds"
            )
        chosen, most = best
        self.ledger.add(
            "plan",
            candidates=[one.name for one in chosen.candidates],
            given_up=[one.name for one in self.candidates if one not in chosen.candidates],
            rungs=list(chosen.rungs),
            waves=list(chosen.waves),
            most_steps=most,
        )
        return chosen

    # -- stages --------------------------------------------------------------------------------------------------------

    def _search(self, stage: str, entrants: Sequence[Candidate], rest: Plan) -> None:
        """One seed of each."""
        if self.stages.begun(stage) is None:
            rest = rest.after(0, self._some(self.costing.probe(entrants)))
            costs = self.costing.costs(self.candidates)
            most = self._most(rest.candidates, lambda most: rest.seconds(costs, most))
            steps = {one: rest.rung_steps(one, most) for one in rest.candidates}
            self.stages.begin(stage, steps, [SEARCH_SEED], self.candidates)
        self.stages.run(stage, self.candidates)

    def _finals(self, entrants: Sequence[Candidate], waves: Sequence[int]) -> None:
        """Fresh seeds: the best of many scores of one seed would flatter. The first wave settles the length of all."""
        for wave, seeds in enumerate(self._seeds(waves)):
            stage = f"{FINAL} {wave + 1}"
            if self.stages.begun(stage) is None:
                steps = self._in_race(waves[wave]) if wave else self._first(entrants, waves)
                if wave and self._too_late(steps, seeds[0]):
                    return
                self.stages.begin(stage, steps, seeds, self.candidates)
            self.stages.run(stage, self.candidates)

    def _seeds(self, waves: Sequence[int]) -> list[list[int]]:
        """Of each wave. On a GPU all at once, where none is to be dropped between them."""
        seeds = [SEARCH_SEED + 1 + index for index in range(len(waves))]
        together = self.backbone.device.type != "cpu" and len(set(waves)) == 1
        return [seeds] if together else [[seed] for seed in seeds]

    def _first(self, entrants: Sequence[Candidate], waves: Sequence[int]) -> dict[Candidate, int]:
        """The first wave, and its steps."""
        entrants = self._some(self.costing.probe(entrants))
        costs = self.costing.costs(self.candidates)
        every = planned(entrants, tuple(min(count, len(entrants)) for count in waves))
        most = self._most(entrants, lambda most: every.seconds(costs, most))
        return {one: steps_at(one, most) for one in entrants}

    def _in_race(self, count: int) -> dict[Candidate, int]:
        """Those that go on to a further seed, and their steps: the best by their means so far; more than planned where time
        allows all of them all their seeds."""
        found: dict[str, list[float]] = {}
        for run in complete(list(self.ledger.all("run"))):
            found.setdefault(run["candidate"], []).append(self.sign * run["value"])
        done = max(map(len, found.values()), default=0)
        means = {name: sum(values) / done for name, values in found.items() if len(values) == done}
        first = self.stages.begun(f"{FINAL} 1") or {"members": []}
        steps = {one["candidate"]: one["steps"] for one in first["members"]}
        left, costs = self.costing.left(self.candidates), self.costing.costs(self.candidates)
        every = promoted([one for one in self.candidates if one.name in steps], means, len(means))
        needed = (self.settings.seeds - done) * sum(costs[one.shape].seconds(steps[one.name]) for one in every)
        chosen = every if left is None or needed <= left else promoted(every, means, count)
        return {one: steps[one.name] for one in chosen}

    def _too_late(self, steps: Mapping[Candidate, int], seed: int) -> bool:
        """Whether a further seed would not be done in time."""
        left, costs = self.costing.left(self.candidates), self.costing.costs(self.candidates)
        late = left is not None and sum(costs[one.shape].seconds(count) for one, count in steps.items()) > left
        if late:
            self.view.say(f"no time is left for seed {seed}")
        return late or not steps

    def _most(self, entrants: Sequence[Candidate], seconds: Callable[[int], float]) -> int:
        """Steps of a final run for which there is time."""
        whole, left = max(one.steps for one in entrants), self.costing.left(self.candidates)
        return whole if left is None else longest(seconds, whole, left) or 1


def _rung(index: int) -> str:
    return f"search {index + 1}"


def _check_settings(ledger: Ledger, settings: CompareSettings) -> None:
    """ConfigError where these are not the settings of the comparison."""
    start = ledger.last("start")
    assert start is not None, "what has ended has begun"
    then, now = from_mapping(start["settings"]).plain(), settings.plain()
    check_same(*(_lasting({"settings": as_json(one)}) for one in (then, now)))


def _lasting(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed comparison must share: there may be more time, and the folder may have been moved."""
    return {**facts, "settings": {**facts["settings"], "budget": None, "out": None}}
