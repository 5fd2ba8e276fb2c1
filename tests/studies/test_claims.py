"""What studies.claims makes of data, which runs it starts, and how it judges."""

import gzip
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from studies.claims_facts import Facts, gaps
from studies.claims_findings import ablation, findings, unseen, widths
from studies.claims_report import ablation_rows, score_rows

from studies import claims, claims_data

RAJA = (
    "name : Raja Indian Cuisine | food : Indian | price range : high | customer rating : 5 out of 5 | near : The Bakers"
)


def show(tagged: claims_data.Tagged) -> str:
    return " ".join(word if tag == 0 else f"{word}/{claims_data.TAGS[tag]}" for word, tag in zip(*tagged, strict=True))


def test_a_slot_is_tagged_wherever_its_value_stands_and_longer_values_win():
    tagged = claims_data.tag(RAJA, "Raja Indian Cuisine, near the bakers: Indian food, rated 5 out of 5, high prices.")
    assert tagged is not None
    assert show(tagged) == (
        "Raja/B-NAME Indian/I-NAME Cuisine/I-NAME , near the/B-NEAR bakers/I-NEAR : Indian/B-FOOD food , rated "
        "5/B-RATING out/I-RATING of/I-RATING 5/I-RATING , high prices ."
    )


def test_a_sentence_that_writes_a_name_otherwise_is_left_out():
    assert claims_data.tag(RAJA, "Raja serves Indian food near The Bakers.") is None
    assert claims_data.tag(RAJA, "Raja Indian Cuisine serves Indian food.") is None


def test_span_f1_equals_seqeval_on_random_tags():
    from seqeval.metrics import f1_score

    rng = random.Random(0)
    tags = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    for _ in range(200):
        ours, theirs = ([[rng.choice(tags) for _ in range(6)] for _ in range(4)] for _ in range(2))
        assert claims_data.span_f1(ours, theirs) == pytest.approx(f1_score(theirs, ours, zero_division=0))


def test_rows_to_train_on_neither_have_nor_mention_what_is_held_out():
    texts = ["name : A | food : Italian", "name : B | area : riverside", "name : C | food : French", "name : D"]
    sentences = ["A is nice.", "B is nice.", "C is nice.", "D serves Japanese food."]
    assert claims_data.seen_rows(texts, sentences) == [2]
    assert [claims_data.is_unseen(text) for text in texts] == [True, True, False, False]


def write_e2e(folder: Path) -> None:
    """Ten restaurants, some near each other, in every split."""
    rows = ["mr,ref"]
    for i in range(10):
        for food, area in (("Italian", "riverside"), ("French", "city centre"), ("Chinese", "riverside")):
            mr = f"name[Place {i}], food[{food}], area[{area}], near[Place {(i + 1) % 10}]"
            rows.append(f'"{mr}",Place {i} has {food} food near Place {(i + 1) % 10} in the {area}.')
            rows.append(f'"{mr}",A restaurant by the name of Place {i} has something.')
    text = "\n".join(rows) + "\n"
    (folder / "train.csv.gz").write_bytes(gzip.compress(text.encode()))
    for split in ("dev", "test"):
        (folder / f"{split}.csv").write_text(text)


def test_names_to_be_found_were_not_in_training_and_sentences_without_all_names_are_left_out(tmp_path):
    from studies.claims_runs import tagged_rows

    write_e2e(tmp_path)
    splits = tagged_rows(tmp_path)
    names = {split: {name for tagged in rows for name in names_in(tagged)} for split, rows in splits.items()}
    held = {("place", str(i)) for i in (0, 3, 6, 9)}
    assert names["validation"] == names["test"] == held
    assert names["train"] == {("place", str(i)) for i in range(10)} - held
    assert {len(rows) for rows in splits.values()} == {12, 18}


def names_in(tagged: claims_data.Tagged) -> set[tuple[str, ...]]:
    words, tags = tagged
    marks = claims_data.spans([claims_data.TAGS[tag] for tag in tags])
    return {tuple(word.lower() for word in words[start:stop]) for start, stop, slot in marks if slot == "NAME"}


# -- which runs --------------------------------------------------------------------------------------------------------


def finished(parts: Sequence[str], score: Any) -> list[dict[str, Any]]:
    """All that `todo` ever asks for, with invented scores."""
    done: list[dict[str, Any]] = []
    while jobs := [
        job for pack in claims.todo(done, list(parts)) for job in pack if list(job) not in [r["job"] for r in done]
    ]:
        done += [{"job": list(job), "validation": score(job), "test": score(job), "stored": 1} for job in jobs]
    return done


def test_a_part_takes_three_seeds_of_every_rate_and_two_more_of_the_best():
    done = finished(["tagging"], lambda job: 1 - job[4])  # the smaller rate is the better one
    seeds = {(run["job"][3], run["job"][4]): 0 for run in done}
    for run in done:
        seeds[run["job"][3], run["job"][4]] += 1
    assert seeds["prompt 20", 2e-2] == 5
    assert seeds["prompt 20", 5e-2] == 3


def test_what_runs_alone_tries_each_rate_once_and_repeats_the_best():
    jobs = [tuple(run["job"][4:]) for run in finished(["tagging, full"], lambda job: job[4])]
    assert sorted(jobs) == [(5e-5, 0), (2e-4, 0), (2e-4, 1), (2e-4, 2)]


def test_other_backbones_can_be_asked_for():
    assert {job[1] for pack in claims.todo([], ["size"], ["some/folder"]) for job in pack} == {"some/folder"}


# -- judging -----------------------------------------------------------------------------------------------------------


def facts(own: list[dict[str, Any]]) -> Facts:
    return Facts(own=own, adapters=[], prompts=[], tables=[], tunes={})


def test_without_figures_nothing_is_judged():
    every = [one for some in findings(facts([])).values() for one in some]
    assert len(every) >= 15
    assert {one.verdict for one in every} == {"not measured yet"}


@pytest.mark.parametrize(("loss", "verdict"), [(0.009, "holds"), (0.011, "does not hold")])
def test_the_size_of_adapters_is_judged_by_the_spread_of_the_means(loss, verdict):
    done = finished(["width"], lambda job: 0.8 - loss * (job[3] == "width 8"))
    found = widths(facts(score_rows(done)[0]))
    assert found is not None
    assert found[1] == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.79, 0.7, "holds"), (0.7, 0.79, "partly"), (0.6, 0.79, "partly")]
)
def test_an_ablation_is_judged_by_single_layers_and_halves(low, high, verdict):
    spans = {f"{i}-{j}": 0.79 for i in range(4) for j in range(i, 4)} | {"0-1": low, "2-3": high, "all": 0.5}
    done = [
        {"job": ["std", "minilm", data, "std 0.01", 1e-3, seed], "test": 0.8, "without": spans}
        for data in ("mrpc", "sst2", "trec")
        for seed in range(3)
    ]
    found = ablation(facts(ablation_rows(done)))
    assert found is not None
    assert found[1] == verdict


@pytest.mark.parametrize(
    ("new", "full", "verdict"), [(61.0, 60.0, "holds"), (59.0, 60.0, "partly"), (54.5, 60.0, "does not hold")]
)
def test_unseen_kinds_are_judged_by_what_is_left(new, full, verdict):
    def row(part: str, variant: str, old: float, unseen_: float) -> dict[str, Any]:
        return {
            "part": part,
            "backbone": "smollm2",
            "data": "e2e, seen kinds",
            "variant": variant,
            "seen": old,
            "unseen": unseen_,
        }

    found = unseen(facts([row("unseen", "prefix 0.1 %", 60.0, new), row("unseen, full", "full", 65.0, full)]))
    assert found is not None
    assert found[1] == verdict


def test_runs_that_diverge_count_as_nothing_right_and_unfinished_ones_are_named():
    done = finished(["std"], lambda job: 0.8)
    for run in done:
        if run["job"][3] == "std 1" and run["job"][5] == 0:
            del run["test"], run["stored"]
            run |= {"validation": -1e9, "diverged": True}
    rows, missing = score_rows(done)
    assert {(r["test"], r["diverged"]) for r in rows if r["variant"] == "std 1"} == {(64.0, 1)}
    assert not [name for name in missing if name.startswith("std:")]
    assert "width: width 8 on trec over minilm" in missing


def test_the_gap_is_known_for_every_backbone_that_has_both_runs():
    rows = [
        {"part": part, "backbone": over, "data": "trec", "variant": "-", "test": score}
        for part, over, score in (("size", "a", 80.0), ("size, full", "a", 90.0), ("size", "b", 85.0))
    ]
    assert gaps(rows) == {("a", "trec"): 10.0}
