"""How a comparison spends its time, and what it writes down of it."""

import json

import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from intarsia.errors import ConfigError
from intarsia.workflow.compare.budget import Cost, halved, longest, plan, planned, promoted, steps_at
from intarsia.workflow.compare.ledger import Ledger
from intarsia.workflow.compare.probing import cost_of
from workflow.compare_plans import candidates

COST = Cost(start=1.0, step=0.1, evaluation=1.0)


def costs_of(found, cost=COST):
    return {one.shape: cost for one in found}


def test_without_a_budget_nothing_is_given_up():
    found = candidates()
    chosen, most = plan(found, costs_of(found), 3, None)
    assert len(chosen.candidates) == len(found)
    assert chosen.waves == (6, 6, 6)
    assert most == max(one.steps for one in found)


@trials(deadline=None)
@given(budget=st.floats(20, 20_000), step=st.floats(0.01, 2), seeds=st.integers(1, 5))
def test_a_plan_fits_its_time_and_takes_what_it_can(budget, step, seeds):
    found = candidates()
    costs = costs_of(found, Cost(start=0.5, step=step, evaluation=1.0))
    best = plan(found, costs, seeds, budget)
    if best is None:
        least = planned([one for one in found if one.level == 0], halved(3, seeds))
        assert least.seconds(costs, 1) > budget
        return
    chosen, most = best
    assert chosen.seconds(costs, most) <= budget
    whole = max(one.steps for one in chosen.candidates)
    assert most == whole or chosen.seconds(costs, most + 1) > budget


def test_shorter_time_gives_up_sizes_then_seeds_then_rates():
    found = candidates(methods=["adapter", "lora", "prefix", "full"])
    widths = []
    for budget in (1e5, 3000, 1000, 500, 250, 100):
        chosen, _ = plan(found, costs_of(found), 3, budget)
        widths.append((max(one.level for one in chosen.candidates), chosen.waves))
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == (5, (4, 4, 4))
    assert widths[-1] < (2, (4, 4, 4))


def test_runs_see_equal_numbers_of_rows_up_to_their_recipes():
    found = candidates(methods=["lora", "prompt"], rows=35_000)
    lora, prompt = (next(one for one in found if one.family == name) for name in ("lora", "prompt"))
    assert prompt.steps == 2 * lora.steps
    assert steps_at(lora, 500) == steps_at(prompt, 500) == 500
    assert (steps_at(lora, 10**6), steps_at(prompt, 10**6)) == (lora.steps, prompt.steps)


def test_a_rung_keeps_the_best_of_each_method_and_full_fine_tuning():
    found = candidates(methods=["lora", "prompt", "full"])
    values = {
        one.name: {"lora": 0.9, "prompt": 0.5, "full": 0.1}[one.family] - one.learning_rate / 100 for one in found
    }
    assert [one.family for one in promoted(found, values, 3)] == ["lora", "prompt", "full"]
    assert [one.family for one in promoted(found, values, 2)] == ["lora", "full"]
    assert [one.family for one in promoted(found, values, 1)] == ["lora"]
    four = promoted(found, values, 4)
    assert [one.family for one in four] == ["lora", "lora", "prompt", "full"]
    assert four[0].learning_rate == 1e-3


def test_what_failed_does_not_go_on():
    found = candidates(methods=["lora", "full"])
    values = {one.name: 0.5 for one in found if one.family == "lora"}
    assert {one.family for one in promoted(found, values, 5)} == {"lora"}


def test_waves_halve_down_to_two():
    assert halved(6, 4) == (6, 3, 2, 2)
    assert halved(1, 3) == (1, 1, 1)
    assert halved(2, 2) == (2, 2)


@trials(deadline=None)
@given(limit=st.integers(-2, 120))
def test_longest_is_the_last_that_fits(limit):
    found = longest(lambda steps: float(steps), 100, limit)
    assert found == (None if limit < 1 else min(100, limit))


def test_evaluations_cost_little_beside_the_steps():
    cost = Cost(start=0, step=0.1, evaluation=2.0)
    assert cost.evaluations(10) == 1
    assert cost.evaluations(400) == 3
    assert cost.evaluations(10**6) == 8


def test_a_probe_is_read_from_the_run_itself():
    lines = [{"step": n, "loss": 1.0, "seconds": 3 + 0.2 * n} for n in range(1, 9)]
    lines.append({"step": 8, "validation_loss": 1.0, "seconds": 3 + 1.6 + 0.7})
    found = cost_of("\n".join(map(json.dumps, lines)), 7.0)
    assert (found.step, found.evaluation) == (pytest.approx(0.2), pytest.approx(0.7))
    assert found.start == pytest.approx(7.0 - 1.6 - 0.7)


# -- the ledger --------------------------------------------------------------------------------------------------------


def test_a_line_that_was_cut_short_is_taken_off_and_nothing_else(tmp_path):
    ledger = Ledger(tmp_path, resume=False)
    ledger.add("start", x=1)
    ledger.add("run", name="a")
    ledger.close()
    path = tmp_path / "ledger.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        again = Ledger(tmp_path, resume=True)
        kept = whole[:cut].count(b"\n")
        assert [event["event"] for event in again.events] == ["start", "run"][:kept]
        again.add("more")
        again.close()
        assert path.read_bytes().count(b"\n") == kept + 1


def test_two_comparisons_do_not_share_a_folder(tmp_path):
    first = Ledger(tmp_path / "x", resume=False)
    first.add("start")
    with pytest.raises(ConfigError, match="another intarsia compare"):
        Ledger(tmp_path / "x", resume=True)
    first.close()
    with pytest.raises(ConfigError, match="go on with --resume"):
        Ledger(tmp_path / "x", resume=False)
    Ledger(tmp_path / "x", resume=True).close()


def test_a_comparison_that_came_to_nothing_leaves_nothing(tmp_path):
    Ledger(tmp_path / "x" / "y", resume=False).close()
    assert not (tmp_path / "x" / "y").exists()


def test_time_before_a_kill_counts(tmp_path):
    import time

    ledger = Ledger(tmp_path, resume=False, began=time.monotonic() - 100)
    ledger.add("start")
    ledger.close()
    again = Ledger(tmp_path, resume=True, began=time.monotonic() - 10)
    assert 110 <= again.spent() < 115
    again.close()
