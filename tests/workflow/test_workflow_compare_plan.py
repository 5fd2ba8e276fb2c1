"""What a comparison tries: the recipes, and the settings that change them."""

import json
from pathlib import Path

import pytest

from intarsia.errors import ConfigError
from intarsia.workflow.compare.expansion import expand
from intarsia.workflow.compare.settings import from_mapping, resolve
from intarsia.workflow.recipes import MOST_EPOCHS, RECIPES, evidence, recipe_of
from workflow.compare_plans import candidates, settings

RESULTS = Path(__file__).resolve().parents[2] / "results"

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
        ({"methods": ["lora", ["head", None]]}, "methods: Input should be a valid dictionary"),
        ({"threads": 10**11}, "threads: Input should be less than or equal to 4096"),
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
