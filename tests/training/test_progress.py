import io
import re

import pytest
from train_standins import TinySource, new, settings, validation

from intarsia.training import LiveReporter, PlainReporter, SilentReporter, fit, open_reporter
from intarsia.training.progress import open_pack_reporter, ticking


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_stream_decides():
    assert isinstance(open_reporter(io.StringIO()), PlainReporter)
    assert isinstance(open_reporter(Terminal()), LiveReporter)
    assert isinstance(open_reporter(Terminal(), silent=True), SilentReporter)


def test_without_a_terminal_there_are_plain_lines(tmp_path):
    stream = io.StringIO()
    fit(*new(), TinySource(), validation(), settings(), tmp_path, report=PlainReporter(stream, every=0.0))
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    told = text.splitlines()
    number = r"\d+\.\d{4}"
    speed = r"\d+(\.\d)?[kM]? tokens/s"
    assert re.fullmatch(rf"step  1/15  loss {number}  {speed}  \d+:\d\d left", told[0])
    evaluations = [line for line in told if "validation" in line]
    assert len(evaluations) == 3
    wanted = (
        rf"step  5/15  validation: accuracy {number}  f1 {number}  matthews -?{number}  loss {number}  \(best so far\)"
    )
    assert re.fullmatch(wanted, evaluations[0])


def test_plain_lines_are_few(tmp_path):
    stream = io.StringIO()
    fit(*new(), TinySource(), validation(), settings(), tmp_path, report=PlainReporter(stream))
    assert len(stream.getvalue().splitlines()) == 3


def test_the_bar_shows_loss_metric_and_speed(tmp_path):
    stream = Terminal()
    report = open_reporter(stream)
    report.say("a line [with brackets] of a path")
    fit(*new(), TinySource(), validation(), settings(), tmp_path, report=report)
    report.stop()
    text = stream.getvalue()
    assert "[with brackets]" in text
    assert all(part in text for part in ("15/15", "loss 0.", "accuracy 0.", "tok/s", "validation: "))


@pytest.mark.parametrize("name", ["lora[r8]", "[/b]"])
def test_a_runs_name_is_shown_as_it_is(name):
    stream = Terminal()
    report = open_pack_reporter(stream).member(name)
    report.start(3, 0)
    report.stop()
    assert name in stream.getvalue()


class Small(Terminal):
    """A terminal of some size: what it shows is what was written since the bars were last drawn."""

    def shown(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue().rpartition("\x1b[1A")[2]).splitlines()


def drawn(monkeypatch, columns, lines, names, ended=(), scored=True):
    """Bars of runs at step 12 of 1000, as last drawn; of which these have ended."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    stream = Small()
    pack = open_pack_reporter(stream)
    reports = {name: pack.member(name) for name in names}
    for report in reports.values():
        report.start(1000, 0)
        report.advance(12)
        report.log(12, 0.5, 12345.0)
        if scored:
            report.evaluated(12, {"accuracy": 0.75, "loss": 0.4}, "accuracy", True)
    for name in ended:
        reports[name].stop()
    pack._bars.refresh()
    running = stream.shown()
    for report in reports.values():
        report.stop()
    return running, stream.getvalue()


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        (40, ["12/1000", "accuracy 0.7500"]),
        (60, ["12/1000", "loss 0.500", "accuracy 0.7500"]),
        (80, ["━", "12/1000", "loss 0.500", "accuracy 0.7500", "left"]),
        (120, ["━", "12/1000", "loss 0.500", "accuracy 0.7500", "12.3k tok/s", "left"]),
    ],
)
def test_a_long_name_leaves_room_for_the_numbers(columns, wanted, monkeypatch):
    names = [f"{'long' * 25}{number}" for number in range(2)]
    running, _ = drawn(monkeypatch, columns, 24, names)
    bars = [line for line in running if "12/1000" in line][-2:]
    assert len(bars) == 2
    for number, line in enumerate(bars):
        assert all(part in line for part in wanted), line
        assert f"{number} " in line.split("12/")[0], "names that differ at their ends are told apart"
        assert len(line) <= columns


def test_without_a_score_a_narrow_terminal_shows_the_loss(monkeypatch):
    running, _ = drawn(monkeypatch, 40, 24, ["a"], scored=False)
    assert "loss 0.500" in running[-1]


def test_runs_that_go_on_have_the_lines_of_those_that_have_ended(monkeypatch):
    names = [f"run{number:02d}" for number in range(14)]
    running, whole = drawn(monkeypatch, 80, 10, names, ended=names[:6])
    shown = [line.split()[0] for line in running if "12/1000" in line]
    assert shown[-8:] == names[6:]
    at_the_end = [line for line in whole.splitlines() if "12/1000" in line][-14:]
    assert [line.rpartition("run")[2][:2] for line in at_the_end] == [f"{number:02d}" for number in range(14)]


def test_times_and_numbers_are_short():
    from intarsia.training.progress import _clock, _short

    assert [_short(n) for n in (7.2, 999, 12345, 4.56e6)] == ["7", "999", "12.3k", "4.6M"]
    assert [_clock(s) for s in (0.4, 7, 754, 3723)] == ["0:00", "0:07", "12:34", "1:02:03"]


def test_a_tick_moves_a_bar_on_a_terminal_and_is_silent_elsewhere():
    for stream in (Terminal(), io.StringIO()):
        with ticking("scoring", 3, stream) as tick:
            for _ in range(3):
                tick()
        assert ("scoring" in stream.getvalue()) == stream.isatty()
