"""`intarsia compare` and `intarsia recipes` as a person calls them; runs are made up, so that only the command is tested."""

import json
import os
import random

import pytest

from cli.refusal import refused
from intarsia.workflow.compare import ledger, probing, running
from workflow.compare_standins import Clock, FakePack, ledger_lines


@pytest.fixture
def pack(monkeypatch):
    clock = Clock()
    for module in (ledger, probing):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    made = FakePack(
        lambda run: 0.8 + 0.01 * len(run.method["name"]) + 0.001 * random.Random(run.train.seed).random(), clock
    )
    monkeypatch.setitem(running.compare.__kwdefaults__, "packs", made)
    return made


@pytest.fixture
def arguments(backbone, files, tmp_path):
    given = ["compare", "--backbone", backbone, "--train", files["train"], "--validation", files["validation"]]
    return [
        *given,
        "--test",
        files["test"],
        "--device",
        "cpu",
        "--methods",
        "lora,head",
        "--seeds",
        2,
        "--out",
        tmp_path / "out",
    ]


def test_it_prints_the_tables_the_verdict_and_where_the_report_is(cli, pack, arguments, tmp_path):
    done = cli(*arguments)
    assert done.status == 0, done.err
    first = done.out.splitlines()[0]
    assert first.split("  ")[0] == "method"
    assert "test accuracy, %" in first
    assert "chosen by the mean validation score over fresh seeds" in done.out
    assert str(tmp_path / "out" / "report.html") in done.out
    assert str(tmp_path / "out" / "best") in done.out
    assert "search 1: " in done.err
    assert "final 2  head lr" in done.err


def test_a_stopped_comparison_says_how_to_go_on_and_does(cli, pack, arguments, tmp_path):
    def stop():
        if any("final" in name for name in pack.packs[-1]):
            raise KeyboardInterrupt

    pack.interrupt = stop
    out = tmp_path / "out"
    done = cli(*arguments, "--budget", "10m")
    assert done.status == 130
    assert done.err.splitlines()[-1] == f"intarsia: stopped; go on with: intarsia compare --out {out} --resume"
    pack.interrupt = lambda: None
    again = cli("compare", "--out", out, "--resume")
    assert again.status == 0, again.err
    assert "chosen by" in again.out
    assert {line["seed"] for line in ledger_lines(out) if line["event"] == "run"} == {0, 1, 2}
    assert all(count == 1 for name, count in pack.finished.items() if name != "probe")


def test_a_file_of_settings(cli, pack, arguments, backbone, files, tmp_path):
    file = tmp_path / "compare.yaml"
    file.write_text(
        f"backbone: {backbone}\ndata: {{train: {files['train']}, test: {files['test']}}}\ndevice: cpu\n"
        "methods: {lora: {sizes: [2], learning_rates: [1e-3]}}\nseeds: 3\nbudget: 5m\n"
    )
    done = cli("compare", file, "--out", tmp_path / "out", "--set", "train.batch_size=8")
    assert done.status == 0, done.err
    start = ledger_lines(tmp_path / "out")[0]
    assert start["settings"]["methods"]["lora"]["sizes"] == [2]
    assert (start["settings"]["seeds"], start["settings"]["budget"]) == (3, 300.0)
    assert start["settings"]["train"] == {"batch_size": 8}


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        (["--budget", "soon"], "budget: expected a time such as 30m"),
        (["--methods", "lora,adaptor"], "did you mean 'adapter'?"),
        (["--set", "methods.lora.sise=[3]"], "unknown key 'methods.lora.sise'"),
        (["--set", "methods.lora.settings.rankk=3"], "did you mean 'rank'?"),
        (["--seeds", "0"], "seeds"),
        (["--data", "embedded:questions"], "give one of them"),
        (["--resume"], "holds no comparison"),
        (["--kind", "regression"], "label"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(cli, pack, arguments, tmp_path, more, fragment):
    refused(cli, tmp_path, [*arguments, *more], fragment)


def test_a_folder_with_a_comparison_is_not_written_over(cli, pack, arguments, tmp_path):
    assert cli(*arguments).status == 0
    refused(cli, tmp_path / "out", arguments, "already holds a comparison; go on with --resume")


def test_recipes_prints_what_compare_starts_from(cli):
    done = cli("recipes")
    assert done.status == 0
    assert "width 48, 8" in done.out
    assert "lora r8: test accuracy mrpc 79.19 (lr 0.001)" in done.out
    one = cli("recipes", "--method", "prompt", "--kind", "generation", "--json")
    (found,) = one.lines()
    assert [recipe["method"] for recipe in found["recipes"]] == ["prompt"]
    assert found["recipes"][0]["learning_rates"] == [0.2, 0.06, 0.02]
    assert json.dumps(found)
    assert "did you mean 'prefix'?" in cli("recipes", "--method", "prefx").err
    assert "did you mean 'generation'?" in cli("recipes", "--kind", "generaton").err
