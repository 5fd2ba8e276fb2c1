"""A comparison that was stopped, killed or given too little time goes on."""

import random
import re

import pytest

from intarsia.errors import ConfigError
from intarsia.workflow.compare import compare
from intarsia.workflow.compare import ledger as ledgers
from workflow.compare_standins import FakePack, Killed, ledger_lines, score


def test_too_short_a_budget_is_refused_and_more_time_goes_on(settings, loaded, clock, unscored):
    pack = FakePack(score, clock)
    with pytest.raises(ConfigError, match="--resume --budget"):
        compare(settings(budget=20.0), backbone=loaded, packs=pack)
    found = compare(settings(budget=400.0), backbone=loaded, packs=pack, resume=True)
    assert found.best.family == "lora"
    assert found.spent <= 400


def test_a_budget_that_timing_alone_uses_up_is_said_after_the_first_and_how_much_it_takes(
    settings, loaded, clock, unscored
):
    pack = FakePack(score, clock)
    with pytest.raises(ConfigError, match=r"timing 4 methods takes about \d+ s here, and the budget is 3;") as caught:
        compare(settings(budget=3.0), backbone=loaded, packs=pack)
    assert len(pack.packs) == 2, "one to warm up, and one that is timed"
    budget = re.search("--resume --budget (\\d+)m", str(caught.value))
    assert budget is not None
    found = compare(settings(budget=60.0 * int(budget[1])), backbone=loaded, packs=pack, resume=True)
    assert found.best.family == "lora"
    assert found.spent <= 60 * int(budget[1])


@pytest.mark.parametrize("seed", range(12))
def test_a_kill_at_any_moment_loses_nothing_and_doubles_nothing(
    settings, loaded, clock, unscored, monkeypatch, tmp_path, seed
):
    """Killed at random moments, in and between the ledger's lines, until it ends: as if it had never been."""
    rng = random.Random(seed)
    given = {"methods": {"lora": {"sizes": [2]}, "full": {}}, "seeds": 2}
    whole = compare(settings(tmp_path / "whole", **given), backbone=loaded, packs=FakePack(score, clock))

    def maybe():
        if rng.random() < 0.15:
            raise Killed

    add = ledgers.Ledger.add

    def dying(self, event, **facts):
        moment = rng.random()
        if moment < 0.02:
            raise Killed
        if moment < 0.04:  # in the middle of a line
            self._file.write(b'{"event": "ru')
            self._file.flush()
            raise Killed
        line = add(self, event, **facts)
        if moment > 0.98:
            raise Killed
        return line

    monkeypatch.setattr(ledgers.Ledger, "add", dying)
    pack, out, kills = FakePack(score, clock, interrupt=maybe), tmp_path / "killed", 0
    while True:
        try:
            found = compare(settings(out, **given), backbone=loaded, packs=pack, resume=out.exists())
            break
        except Killed:
            kills += 1
            assert kills < 300
    assert kills
    runs = [line["run"] for line in ledger_lines(out) if line["event"] == "run"]
    assert sorted(runs) == sorted(set(runs)), "no run stands in the ledger twice"
    trained = {name: count for name, count in pack.finished.items() if name != "probe"}
    assert set(trained.values()) == {1}, "no run was trained to its end twice"
    assert set(trained) == set(runs)
    assert (found.best.candidate, found.best.validation) == (whole.best.candidate, whole.best.validation)
    assert [row.test for row in found.finals] == [row.test for row in whole.finals]
    events = [line["event"] for line in ledger_lines(out)]
    assert [events.count(one) for one in ("start", "plan", "choice", "end")] == [1, 1, 1, 1]
    assert events.count("test") == len({line["run"] for line in ledger_lines(out) if line["event"] == "test"})


def test_a_comparison_that_has_ended_only_gets_its_report_again(settings, loaded, clock, unscored):
    pack = FakePack(score, clock)
    first = compare(settings(), backbone=loaded, packs=pack)
    out, packs = settings().base.out, len(pack.packs)
    before = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    again = compare(settings(), backbone=loaded, packs=pack, resume=True)
    assert len(pack.packs) == packs
    assert again.best.candidate == first.best.candidate
    assert (out / "report.html").read_bytes() == before
    compare(settings(budget=3000.0), backbone=loaded, packs=pack, resume=True)
    with pytest.raises(ConfigError, match="seeds was 3 and is 4"):
        compare(settings(seeds=4), backbone=loaded, packs=pack, resume=True)


def test_a_resumed_comparison_is_the_same_comparison(settings, loaded, clock):
    pack = FakePack(score, clock, interrupt=lambda: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        compare(settings(), backbone=loaded, packs=pack)
    with pytest.raises(ConfigError, match="seeds was 3 and is 4"):
        compare(settings(seeds=4), backbone=loaded, packs=pack, resume=True)


def test_a_folder_that_was_moved_goes_on(settings, loaded, clock, unscored, tmp_path):
    kills = [Killed]

    def once():
        if kills:
            raise kills.pop()

    with pytest.raises(Killed):
        compare(settings(), backbone=loaded, packs=FakePack(score, clock, interrupt=once))
    moved = settings().base.out.rename(tmp_path / "elsewhere")
    found = compare(settings(moved, budget=3000.0), backbone=loaded, packs=FakePack(score, clock), resume=True)
    assert found.best.family == "lora"
    assert found.budget == 3000
    assert (moved / "best" / "task.json").exists()
