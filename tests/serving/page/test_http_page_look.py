"""How the page at `/` looks: widths, colours and motion."""

import pytest

from intarsia.serving.requests import Busy
from serving.fake_engine import card, failing
from serving.page_site import PALE, answered, ask, pick


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_sticks_out_at_any_width(visit, engine, width):
    long = "a-very-long-name-of-a-task-" * 8
    engine.found[long] = card(long, labels=("l" * 200, "yes"))
    engine.found["mood"] = card(
        "mood", metrics={"a_metric_with_a_long_name": 0.123456789, "another_long_one": 12345.678}
    )
    page = visit(viewport={"width": width, "height": 740})
    pick(page, "mood", "topics", "names", "stars", "writer", long)
    ask(page, "word " * 40 + "w" * 400)
    answered(page, "6 answers in")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("mood", "writer"):
        box = page.get_by_role("checkbox", name=name, exact=True).locator("xpath=ancestor::tr").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("width", [900, 1280, 1440])
def test_the_columns_fill_the_table_and_no_method_is_cut_off(visit, engine, width):
    engine.found["long"] = card("long", method={"name": "ptuning-v2"})
    page = visit(viewport={"width": width, "height": 740})
    edge = "cell => cell.getBoundingClientRect().right"
    table, last = page.locator("table").evaluate(edge), page.locator("#rows td.memory").first.evaluate(edge)
    assert last == pytest.approx(table, abs=1)
    method = page.locator("#rows td.method", has_text="ptuning-v2")
    assert method.evaluate("cell => cell.scrollWidth <= cell.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(visit, engine, scheme):
    engine.on["spam"] = failing(Busy("the queue is full", 7.0))
    page = visit(color_scheme=scheme, reduced_motion="reduce")
    pick(page, "mood", "spam", "names", "writer")
    ask(page)
    answered(page, "3 of 4 answers")
    found = page.evaluate(PALE)
    assert found["pale"] == []
    assert found["seen"] > 80
    assert (found["ground"] < 0.05) == (scheme == "dark")


def test_nothing_moves_for_those_who_want_less_motion(visit):
    for motion, expected in (("reduce", "none"), ("no-preference", "width")):
        page = visit(reduced_motion=motion)
        pick(page, "mood")
        ask(page)
        answered(page, "1 answer in")
        assert page.locator(".track i").first.evaluate("bar => getComputedStyle(bar).transitionProperty") == expected
