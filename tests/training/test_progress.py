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
