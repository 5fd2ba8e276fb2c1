"""What a comparison's report says, in HTML, Markdown and pictures; and the commands in it."""

import re
import shlex
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from intarsia.workflow.compare.commands import train_command
from intarsia.workflow.compare.report import write_report
from intarsia.workflow.compare.report.cells import costs, duration, plus_minus, ranking, shown, size, stopped
from intarsia.workflow.compare.report.plots import pictures
from intarsia.workflow.compare.report.svg import short
from intarsia.workflow.compare.report.words import cautions, how, verdict
from intarsia.workflow.compare.statistics import Interval
from intarsia.workflow.compare.summary import Curve, Point, Row, Summary, _compare_with_baseline

SHAPES = {"lora rank 8": 76_038, "adapter width 48": 459_846, "prompt length 20": 9_990, "full": 22_567_686}
TEST = {
    "lora rank 8": (0.95, 0.96, 0.95),
    "adapter width 48": (0.96, 0.97, 0.958),
    "prompt length 20": (0.90, 0.91, 0.92),
    "full": (0.955, 0.965, 0.95),
}


def row(shape, *, final=True):
    scores = dict(enumerate(TEST[shape], 1))
    return Row(
        candidate=f"{shape} lr 0.001",
        shape=shape,
        family=shape.split()[0],
        learning_rate=1e-3,
        stage="final" if final else "search 1",
        runs=[f"{shape}-{seed}" for seed in scores],
        validation={seed: score - 0.01 for seed, score in scores.items()},
        test={seed: {"accuracy": score, "loss": 0.2} for seed, score in scores.items()} if final else {},
        parameters=SHAPES[shape],
        bytes=4 * SHAPES[shape],
        steps=400,
        epochs=3.0,
        memory=10**9,
        seconds=60.0,
        command=f"intarsia train --method {shape.split()[0]}",
    )


def summary(**changes):
    settings = {"backbone": "embedded:minilm", "data": {"data": "embedded:questions"}, "seeds": 3, "budget": 600.0}
    facts = {
        "start": {
            "settings": settings,
            "kind": "classification",
            "labels": ["ABBR", "a|<b>"],
            "rows": {"train": 4281, "validation": 527, "test": 573},
            "backbone_bytes": 45_400_000,
            "backbone_parameters": 22_713_216,
            "device": "cpu",
            "dtype": "bfloat16",
            "hardware": {"gpus": [], "cpu": "A CPU", "cores": 2},
            "versions": {"torch": "2"},
            "commit": None,
        },
        "metric": "accuracy",
        "higher": True,
        "tested": True,
        "choice": {"candidate": "adapter width 48 lr 0.001", "run": "x", "by": "the mean"},
        "rows": [row(shape) for shape in ("adapter width 48", "full", "lora rank 8", "prompt length 20")],
        "points": [
            Point(stage="search 1", shape=s, family=s.split()[0], learning_rate=rate, value=v, steps=40)
            for s in ("lora rank 8", "full")
            for rate, v in ((1e-4, 0.5), (1e-3, 0.8))
        ],
        "curves": [Curve(family="full", shape="full", seed=s, points=[(1, 0.8), (2, 0.9 + s / 100)]) for s in (1, 2)],
        "answers": {"confusion": [[3, 1], [0, 4]], "split": "test"},
        "left_out": [],
        "failed": [],
        "not_tried": [],
        "cut": [],
        "spent": 512.0,
        "budget": 600.0,
    }
    found = Summary(**{**facts, **changes})
    _compare_with_baseline(found)
    return found


class Checker(HTMLParser):
    """Every tag closed, nothing loaded from elsewhere."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self):
        super().__init__()
        self.open, self.text, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
    write_report(summary(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.links == []
    assert "url(" not in page
    assert "@import" not in page
    assert "<script" not in page
    text = " ".join(" ".join(checker.text).split())
    for part in (
        "Ranking",
        "What it costs",
        "Learning curves",
        "Learning rates",
        "Confusion matrix",
        "To make each row again",
    ):
        assert part in text
    assert "<b>" not in "".join(checker.text).replace("a|<b>", ""), "labels are text, not markup"
    assert text.count("a|<b>") == 2


def test_the_twin_says_the_same(tmp_path):
    found = summary()
    write_report(found, tmp_path)
    twin = (tmp_path / "report.md").read_text()
    for line in (*verdict(found), *cautions(found)):
        assert line in twin
    for table in (ranking(found), costs(found)):
        for cells in table.rows:
            for cell in cells:
                assert cell in twin
    for name in re.findall(r"\(plots/(\w+\.svg)\)", twin):
        assert ET.parse(tmp_path / "plots" / name).getroot().tag.endswith("svg")
    assert twin.count("plots/") == 3
    assert r"a\|<b>" in twin


def test_the_verdict_names_the_choice_the_difference_and_its_price():
    first, second = verdict(summary())
    assert (
        first == "adapter width 48 at learning rate 0.001, test accuracy 96.3 ± 1.6 over 3 seeds: chosen by the mean."
    )
    assert "ahead of full fine-tuning (95.7 ± 1.9) by 0.6: not significant, p = " in second
    assert "2 % as many parameters, and 1,000 such tasks take 1.88 GB on disk instead of 90.3 GB" in second


def test_where_full_fine_tuning_wins_the_best_that_shares_the_backbone_is_named():
    found = summary(
        rows=[row(shape) for shape in ("full", "lora rank 8")],
        choice={"candidate": "full lr 0.001", "run": "x", "by": "the mean"},
    )
    said = verdict(found)
    assert said[0].startswith("full at")
    assert said[1].startswith("Best of those that share the backbone: lora rank 8")
    assert "behind full fine-tuning" in said[1]


def test_without_fresh_seeds_it_is_only_a_hint():
    found = summary(
        rows=[row("lora rank 8", final=False)],
        tested=False,
        curves=[],
        choice={"candidate": "lora rank 8 lr 0.001", "run": "x", "by": "one"},
    )
    assert any("no more than a hint" in line for line in verdict(found))
    assert set(pictures(found)) == {"rates"}


def test_short_runs_are_said_to_be_short():
    found = summary()
    found.start["settings"]["budget"] = 60.0
    assert not any("% of their recipes" in line for line in cautions(found))
    for one in found.rows:
        one.full_steps = 4000
    assert any("10 % of their recipes' length" in line for line in cautions(found))
    assert verdict(found)[-1].startswith("The final runs had only 10 %")
    assert not any("only" in line for line in verdict(summary()))


def test_what_a_test_split_makes_uncertain_is_counted_in_what_is_scored():
    """Rows, and words where each has a tag."""
    found = summary()
    rows = next(line for line in cautions(found) if "standard error" in line)
    found.start["kind"], found.answers["confusion"] = "token-classification", [[900, 20], [30, 50]]
    words = next(line for line in cautions(found) if "standard error" in line)
    assert f"has {found.start['rows']['test']:,} rows" in rows
    assert "has 1,000 words" in words


def test_a_lower_loss_is_ahead():
    found = summary(metric="loss", higher=False)
    for one in found.rows:
        one.validation = {seed: 1 - score for seed, score in one.validation.items()}
        one.test = {seed: {"loss": 1 - s["accuracy"]} for seed, s in one.test.items()}
    _compare_with_baseline(found)
    assert "ahead of full fine-tuning (0.04333" in verdict(found)[1]


def test_tables_hold_every_row_and_mark_the_choice():
    found = summary(rows=[row("adapter width 48"), row("full"), row("prompt length 20", final=False)])
    table = ranking(found)
    assert (len(table.rows), table.bold) == (2, 0)
    assert table.rows[1][-3:-1] == ["-", "-"]  # full fine-tuning against itself
    assert [cells[:3] for cells in stopped(found).rows] == [["prompt length 20", "0.001", "search 1"]]
    assert all(len(cells) == len(table.headers) for cells in table.rows)


def test_numbers_are_said_as_people_say_them():
    assert (size(912), size(41_400), size(90.3e9)) == ("912 B", "41.4 kB", "90.3 GB")
    assert (duration(12.34), duration(204), duration(3600 * 3.5)) == ("12.3 s", "3.4 min", "3.5 h")
    assert (shown(0.9421, "accuracy"), shown(0.9421, "pearson"), shown(64.38, "bleu")) == ("94.2", "0.9421", "64.38")
    assert plus_minus(Interval(0.94, 0.012, 0.01, 3), "accuracy") == "94.0 ± 1.2"
    assert [short(v) for v in (0, 0.92, 12.5, 30_000, 2e6, 1e-3)] == ["0", "0.92", "12.5", "30k", "2M", "1e-3"]


def test_the_price_of_each_of_a_thousand_tasks_holds_its_share_of_the_backbone():
    found = costs(summary())
    lora = found.rows[2]
    assert found.headers[-3:] == ["1,000 tasks: disk", "each of them", "1,000 tasks: time"]
    assert lora[-3:] == ["350 MB", "350 kB", "16.7 h"]  # 1,000 x 4 x 76,038 bytes and 45.4 MB; 1,000 minutes


def test_the_budget_that_was_given_last_is_the_one_that_is_told():
    assert "8.53 min in all, of a budget of 15 min." in how(summary(budget=900.0))[1]


@pytest.mark.parametrize(
    "tree",
    [
        {
            "method": {"name": "lora", "rank": 4},
            "train": {"learning_rate": 2e-3, "max_steps": 7, "seed": 3, "evaluate_every": 4},
        },
        {
            "method": {"name": "adapter", "width": 8, "after": ["ffn_out"]},
            "train": {"backbone_dropout": False, "betas": [0.9, 0.98]},
        },
        {
            "method": {"name": "prompt", "init": "text", "init_text": "it's a 'test' $HOME"},
            "head": {"pooling": "cls"},
            "dtype": "float32",
        },
        {
            "method": "full",
            "data": {"train": "a b.csv", "test": "t.csv", "text_columns": ["x", "y"], "template": "{x}? {y}"},
        },
        {"method": {"name": "prefix", "mid": None}, "train": {"epochs": 2}, "threads": 2, "generation": {"beams": 5}},
    ],
)
def test_the_command_of_a_row_makes_the_very_settings_of_its_run(tree, monkeypatch):
    from intarsia.cli.__main__ import main
    from intarsia.workflow import training
    from intarsia.workflow.settings import from_tree

    given = from_tree({"backbone": "embedded:minilm", "data": {"data": "embedded:questions"}, "out": "there", **tree})
    program, *argv = shlex.split(train_command(given.model_dump(mode="json"), "elsewhere"))
    assert program == "intarsia"
    seen = []

    def run(settings, **_):
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "run", run)
    assert main(argv) == 130
    (settings,) = seen
    assert settings.model_dump(exclude={"out"}) == given.model_dump(exclude={"out"})
