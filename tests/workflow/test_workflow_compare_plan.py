"""The pure parts of a comparison: what is tried, how time is spent, what numbers say."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from scipy import stats

from intarsia.errors import ConfigError
from intarsia.workflow.compare.budget import Cost, halved, longest, plan, planned, promoted, steps_at
from intarsia.workflow.compare.expansion import expand
from intarsia.workflow.compare.ledger import Ledger
from intarsia.workflow.compare.probing import cost_of
from intarsia.workflow.compare.settings import from_mapping, resolve
from intarsia.workflow.compare.statistics import difference, holm, interval, pareto
from intarsia.workflow.recipes import MOST_EPOCHS, RECIPES, evidence, recipe_of

RESULTS = Path(__file__).resolve().parents[2] / "results"
BASE = {"backbone": "b", "data": {"data": "embedded:questions"}, "out": "o"}


def settings(**changes):
    return from_mapping({**BASE, **changes})


def candidates(rows=3200, **changes):
    return expand(settings(**changes), "classification", rows)


# -- recipes -----------------------------------------------------------------------------------------------------------


def test_the_figures_behind_the_recipes_are_those_of_the_results():
    """Fails when a study has been made again: python -m studies.recipe_evidence."""
    named = {pair for group in RECIPES.values() for recipe in group.values() for pair in recipe.evidence}
    held = evidence()
    for study, method in named:
        rows = json.loads((RESULTS / f"{study}.json").read_text())["rows"]
        found = {
            row.get("data", "e2e"): [row[metric], row["learning rate"], row["seeds"]]
            for row in rows
            for metric in row
            if metric in ("test accuracy", "test BLEU") and row["method"] == method and row.get("rows") is None
        }
        assert held.get(study, {}).get(method, {"scores": {}})["scores"] == found, (study, method)
    assert {(study, method) for study, methods in held.items() for method in methods} <= named


def test_every_learning_rate_that_won_is_among_the_recipes_own():
    for group in RECIPES.values():
        for recipe in group.values():
            first = evidence().get(recipe.evidence[0][0], {}).get(recipe.evidence[0][1]) if recipe.evidence else None
            for _, rate, _ in (first or {"scores": {}})["scores"].values():
                assert rate in recipe.learning_rates, recipe.method
    assert "lora r8: test accuracy mrpc 79.19 (lr 0.001)" in recipe_of("lora", "classification").figures()[1]


@pytest.mark.parametrize(("answers", "kind"), [("labels", "classification"), ("text", "generation")])
def test_every_recipe_builds_its_method_at_every_size(answers, kind):
    from intarsia.methods import METHODS

    assert set(RECIPES[answers]) == set(METHODS) - (
        {"head"} if answers == "text" else set()
    )  # a head alone writes nothing
    for name in RECIPES[answers]:
        found = expand(settings(methods=[name]), kind, 1000)
        assert len({one.name for one in found}) == len(found)
        assert {one.learning_rate for one in found} == set(recipe_of(name, kind).learning_rates)
        assert sum(one.level == 0 for one in found) == 1


def test_a_small_data_set_is_repeated_and_a_large_one_seen_once():
    recipe = recipe_of("lora", "classification")
    assert recipe.epochs(100) == MOST_EPOCHS
    assert recipe.epochs(3500) == 10
    assert recipe.epochs(10**6) == 1


# -- settings and expansion --------------------------------------------------------------------------------------------


def test_a_file_says_all_sizes_rates_and_initialisations():
    found = candidates(
        methods={
            "adapter": {"sizes": [8, 48], "learning_rates": [1e-3, 5e-4, 2e-3], "inits": [1e-2, 1e-4], "epochs": 2},
            "prompt": {
                "sizes": [5],
                "learning_rates": [0.1],
                "inits": ["vocabulary", {"init": "text", "init_text": "good"}],
            },
            "full": {},
        },
        train={"batch_size": 16},
    )
    adapters = [one for one in found if one.family == "adapter"]
    assert len(adapters) == 2 * 3 * 2
    assert {(a.method["width"], a.method["init_std"], a.learning_rate) for a in adapters} == {
        (w, i, r) for w in (8, 48) for i in (1e-2, 1e-4) for r in (1e-3, 5e-4, 2e-3)
    }
    assert all(one.steps == 2 * 200 for one in adapters)
    assert [one.name for one in found if one.level == 0] == [
        "adapter width 8 init_std 0.01 lr 0.001",
        "prompt length 5 from vocabulary lr 0.1",
        "full lr 0.0001",
    ]
    texts = [one for one in found if "text good" in one.shape]
    assert [one.method["init_text"] for one in texts] == ["good"]
    assert [one.train["batch_size"] for one in found] == [16] * len(found)


def test_the_file_in_the_documentation_is_one(tmp_path):
    text = (RESULTS.parent / "docs" / "compare.md").read_text()
    file = tmp_path / "compare.yaml"
    file.write_text(text.split("```yaml\n")[1].split("```")[0])
    found = resolve(file, {})
    assert (found.seeds, found.budget, found.given) == (5, 7200.0, frozenset({"batch_size", "epochs"}))
    names = [one.name for one in expand(found, "classification", 1000)]
    assert "prompt length 20 text what is asked for lr 0.02" in names
    assert "adapter width 48 init_std 0.0001 lr 0.001" in names


def test_settings_survive_the_ledger():
    given = settings(
        methods={"lora": {"sizes": [4], "settings": {"alpha": 4.0}}}, budget="30m", train={"epochs": 2}, seeds=5
    )
    again = from_mapping(json.loads(json.dumps(given.plain())))
    assert again.plain() == given.plain()
    assert (again.budget, again.seeds, again.given) == (1800.0, 5, frozenset({"epochs"}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metods": ["lora"]}, "unknown key 'metods'; did you mean 'methods'?"),
        ({"methods": ["lorra"]}, "did you mean 'lora'?"),
        ({"methods": {"lora": {"size": [4]}}}, "unknown key 'methods.lora.size'"),
        ({"methods": {"lora": {"sizes": [0]}}}, "methods.lora.sizes"),
        ({"methods": {"lora": {"learning_rates": []}}}, "methods.lora.learning_rates"),
        ({"budget": "soon"}, "expected a time such as 30m"),
        ({"budget": 0}, "budget"),
        ({"seeds": 0}, "seeds"),
        ({"train": {"learning_rate": 1e-3}}, "train.learning_rate is what a comparison decides"),
        ({"train": {"seed": 1}}, "train.seed is what a comparison decides"),
        ({"train": {"epoch": 1}}, "did you mean 'train.epochs'?"),
        ({"out": None}, "give --out"),
        ({"data": None}, "data is missing"),
    ],
)
def test_wrong_settings_are_one_line_with_the_key(changes, said):
    with pytest.raises(ConfigError) as error:
        settings(**changes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({"full": {"sizes": [3]}}, "full has no size"),
        ({"lora": {"inits": ["zero"]}}, "lora starts in one way only"),
        ({"lora": {"settings": {"rnk": 3}}}, "did you mean 'rank'?"),
        ({"lora": {"sizes": [4, 4]}}, "is listed twice"),
    ],
)
def test_a_grid_that_a_method_cannot_have_is_refused(methods, said):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        candidates(methods=methods)


def test_flags_stand_over_the_file_and_set_over_both(tmp_path):
    file = tmp_path / "compare.yaml"
    file.write_text(
        "backbone: a\ndata: {train: x.csv}\nmethods: {lora: {sizes: [4]}, full: }\nseeds: 2\nout: o\nbudget: 2h\n"
    )
    found = resolve(
        file,
        {"backbone": "b", "data.data": "embedded:movies", "budget": "10m", "seeds": None},
        ["methods.lora.sizes=[8, 16]"],
    )
    assert found.base.backbone == "b"
    assert found.base.data.data == "embedded:movies"
    assert found.base.data.train is None
    assert (found.budget, found.seeds, found.methods["lora"].sizes, list(found.methods)) == (
        600.0,
        2,
        (8, 16),
        ["lora", "full"],
    )


# -- time --------------------------------------------------------------------------------------------------------------

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


# -- statistics --------------------------------------------------------------------------------------------------------

SCORES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@trials(deadline=None)
@given(values=SCORES)
def test_the_interval_is_students(values):
    found = interval(values)
    assert found.mean == pytest.approx(sum(values) / len(values))
    if found.std and found.std > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=found.mean, scale=stats.sem(values))
        assert found.half == pytest.approx((high - low) / 2)


def test_one_seed_has_no_interval():
    assert interval([0.5]).half is None


@trials(deadline=None)
@given(pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_common_seeds_are_compared_in_pairs(pairs):
    a, b = ({seed: pair[i] for seed, pair in enumerate(pairs)} for i in (0, 1))
    found = difference({**a, 99: 0.3}, b)
    gaps = [x - y for x, y in pairs]
    assert found.mean == pytest.approx(sum(gaps) / len(gaps))
    assert "paired" in found.test
    spread = max(gaps) - min(gaps)
    if spread > 1e-6:
        assert found.p == pytest.approx(stats.ttest_rel([x for x, _ in pairs], [y for _, y in pairs]).pvalue, abs=1e-9)


def test_without_common_seeds_the_test_is_welchs():
    mine, theirs = {1: 0.9, 2: 0.92, 3: 0.95}, {4: 0.8, 5: 0.84}
    found = difference(mine, theirs)
    assert "Welch" in found.test
    assert found.p == pytest.approx(stats.ttest_ind([*mine.values()], [*theirs.values()], equal_var=False).pvalue)


def test_too_little_gives_no_p_and_no_warning():
    assert difference({1: 0.9}, {1: 0.8}).p is None
    assert difference({1: 0.9, 2: 0.9}, {1: 0.8, 2: 0.8}).p is None
    assert difference({1: 0.9, 2: 0.8}, {1: 0.9, 2: 0.8}).p == 1.0


def test_holm_corrects_in_order_and_never_falls():
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@trials(deadline=None)
@given(points=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=12))
def test_nothing_beats_the_front(points):
    front = pareto(points)
    for i, (cost, score) in enumerate(points):
        beaten = any((c <= cost and s > score) or (c < cost and s >= score) for c, s in points)
        if i in front:
            assert not beaten
        elif not beaten:
            assert (cost, score) in [points[j] for j in front]  # its equal is there
    costs = [points[i][0] for i in front]
    assert costs == sorted(costs)
    assert len(set(costs)) == len(costs)
