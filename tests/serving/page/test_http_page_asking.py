"""Asking on the page at `/`: texts, answers, pieces and refusals."""

import re
import threading
from types import SimpleNamespace

import pytest

from intarsia.serving.requests import Answer, Busy, Finished, Piece
from serving.fake_engine import card, failing
from serving.page_site import answered, ask, block, pick

EVIL = "<img src=x onerror=document.title='broken'>"


def test_a_text_goes_to_tasks_with_the_keyboard_alone(visit, engine):
    page = visit()
    focus = (
        "() => [document.activeElement.ariaLabel ?? document.activeElement.id, "
        "getComputedStyle(document.activeElement).outlineStyle]"
    )

    def tab_to(name):
        for _ in range(20):
            page.keyboard.press("Tab")
            found, outline = page.evaluate(focus)
            assert outline == "solid", f"{found} has the focus and does not show it"
            if found == name:
                return
        raise AssertionError(f"tab does not reach {name}")

    tab_to("filter")
    tab_to("mood")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("ArrowDown")
    tab_to("text-0")
    page.keyboard.type("abc")
    page.keyboard.press("Control+Enter")
    answered(page, "2 answers in")
    assert sorted(question.task for question in engine.asked) == ["mood", "names"]
    assert "yes\n0.750" in block(page, "mood").inner_text()
    assert block(page, "names").locator("strong").inner_text() == "1 tag"


def test_answers_stand_side_by_side_as_bars_and_numbers(visit, engine):
    engine.found["many"] = card("many", labels=tuple(f"label {n}" for n in range(30)))
    scores = {f"label {n}": n / 435 for n in range(30)}
    many = SimpleNamespace(label="label 29", prediction=29, scores=scores)
    engine.on["many"] = lambda request, deliver: deliver(Answer(many))
    page = visit()
    pick(page, "mood", "topics", "stars", "many")
    ask(page, "abc")
    answered(page, "4 answers in")
    bars = block(page, "mood").locator(".bars div")
    assert bars.all_inner_texts() == ["no\n0.250", "yes\n0.750"]
    track, fill = (bars.last.locator(part).bounding_box()["width"] for part in (".track", ".track i"))
    assert fill / track == pytest.approx(0.75, abs=0.02)
    assert block(page, "topics").locator(".chosen dt").all_inner_texts() == ["art", "sea"]
    assert block(page, "stars").locator("strong").inner_text() == "0.3"
    assert block(page, "many").locator(".bars:visible div").count() == 6
    block(page, "many").get_by_text("24 more").click()
    assert block(page, "many").locator(".bars:visible div").count() == 30
    assert {question.texts for question in engine.asked} == {("abc",)}
    assert re.fullmatch(r"[\d.]+ m?s", block(page, "mood").locator(".foot").inner_text())


def test_who_has_selected_nothing_is_told_so_until_something_is(visit):
    page = visit()
    ask(page)
    assert page.get_by_role("alert").inner_text() == "Select at least one task in the table first."
    pick(page, "mood")
    page.locator("#error").wait_for(state="hidden")


def test_a_task_of_two_columns_has_two_fields(visit, engine):
    page = visit()
    pick(page, "pair")
    page.get_by_label("premise").fill("it rains")
    ask(page, "it is wet", "hypothesis")
    answered(page, "1 answer in")
    assert [question.texts for question in engine.asked] == [("it rains", "it is wet")]


def test_a_generation_is_shown_piece_by_piece_and_can_be_stopped(visit, engine):
    go_on = threading.Event()

    def write(request, deliver):
        def pieces():
            deliver(Piece("Once ", 1))
            go_on.wait(20)
            deliver(Piece("upon", 1))
            deliver(Finished("stop", 3, 2, "Once upon"))

        threading.Thread(target=pieces).start()

    engine.on["writer"] = write
    page = visit()
    pick(page, "writer")
    ask(page)
    page.locator(".written", has_text=re.compile("^Once $")).wait_for()
    go_on.set()
    page.locator(".written", has_text="Once upon").wait_for()
    answered(page, "1 answer in")
    assert "2 tokens, first after" in block(page, "writer").inner_text()
    go_on.clear()
    ask(page)
    page.locator(".written", has_text="Once").wait_for()
    page.get_by_role("button", name="Stop").click()
    answered(page, "0 of 1 answer in")
    assert engine.cancellation.wait(10)
    go_on.set()


def test_names_and_labels_are_text_and_never_markup(visit, engine):
    engine.found[EVIL] = card(
        EVIL, labels=(EVIL, "yes"), columns=(EVIL,), metrics={EVIL: 1.0}, method={"name": EVIL, EVIL: EVIL}
    )
    engine.backbone.name = EVIL
    engine.on["spam"] = failing(Busy(EVIL, 1.0))
    engine.on["writer"] = lambda request, deliver: [deliver(Piece(EVIL, 1)), deliver(Finished("stop", 1, 1, EVIL))]
    page = visit()
    pick(page, "spam", "writer", EVIL)
    ask(page, EVIL, f"text, {EVIL}")
    answered(page, "2 of 3 answers")
    assert page.title() == "Intarsia"
    assert page.locator("img").count() == 1  # our own mark
    for place in ("#rows", "#detail", "#answers", "#backbone", "#error", "#asked"):
        page.locator(place, has_text=EVIL).wait_for(state="attached")


def test_a_refusal_is_one_line_and_the_others_go_on(visit, engine):
    engine.on["writer"] = failing(Busy("the queue is full", 7.0))
    page = visit()
    pick(page, "mood", "writer")
    ask(page)
    answered(page, "1 of 2 answers")
    assert page.get_by_role("alert").inner_text() == "the queue is full (try again in 7 s)"
    assert "0." in block(page, "mood").inner_text()
    del engine.on["writer"]
    ask(page)
    answered(page, "2 answers in")
    assert page.get_by_role("alert").count() == 0
