"""What a comparison says while it runs."""

import io
import re

import pytest

from intarsia.workflow.compare.live import open_view


class Screen(io.StringIO):
    """What a terminal gets."""

    def isatty(self):
        return True


MEMBERS = [{"run": f"r{i}", "candidate": f"lora lr {i}", "seed": 0, "steps": 60} for i in range(4)]


@pytest.mark.parametrize(("higher", "order"), [(True, "1203"), (False, "2103")])
def test_the_live_table_has_the_best_on_top(higher, order):
    screen = Screen()
    view = open_view(screen)
    view.begin(lambda: 62.0, 600.0)
    view.stage("search 1", MEMBERS, higher=higher)
    view.evaluated("r2", 30, 0.81)
    view.ended("r1", 0.93)
    view.ended("r3", None)
    view.stop()
    last = screen.getvalue().rpartition("1:02 of 10:00  search 1: 4 runs of 60 steps")[2]
    assert "".join(re.findall(r"lora lr (\d)", last)) == order
    assert "30/60" in last
    assert "failed" in last


def test_elsewhere_there_is_a_line_for_each_run():
    stream = io.StringIO()
    view = open_view(stream)
    view.begin(lambda: 5.0, None)
    view.stage("final 1", MEMBERS[:2], higher=True)
    view.evaluated("r0", 30, 0.5)
    view.ended("r0", 0.75)
    view.ended("r1", None)
    view.stop()
    assert stream.getvalue().splitlines() == [
        "0:05  final 1: 2 runs of 60 steps",
        "0:05  final 1  lora lr 0  seed 0: 0.7500",
        "0:05  final 1  lora lr 1  seed 0: failed",
    ]
