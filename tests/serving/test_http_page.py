"""The page at `/` in a real Chromium, over a server whose engine is a fake one."""

import re
import threading
from types import SimpleNamespace

import pytest

from intarsia.serving.http import Keys
from intarsia.serving.http.pages import TYPES
from intarsia.serving.requests import Answer, Busy, Finished, Piece
from serving.fake_engine import CARDS, FakeEngine, card, failing, serving
from serving.page_site import PALE, chromium, complaints, served

EVIL = "<img src=x onerror=document.title='broken'>"
KEY = "a-key-for-the-page-0123"


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


@pytest.fixture
def address(engine):
    with served(engine) as found:
        yield found


@pytest.fixture
def visit(browser, request):
    """Opens the page of the test's server, or of `at`; the page must not complain of anything by the test's end."""
    contexts, complained = [], []

    def go(at=None, rows="#rows tr", before=None, **context):
        contexts.append(browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **context}))
        contexts[-1].set_default_timeout(10_000)
        page = contexts[-1].new_page()
        complained.append(complaints(page))
        if before is not None:
            before(page)
        page.goto(at or request.getfixturevalue("address"))
        page.wait_for_selector(rows)
        return page

    yield go
    for context in contexts:
        context.close()
    assert complained == [[]] * len(contexts)


def column(page, name):
    return page.locator(f"#rows td.{name}").all_inner_texts()


def pick(page, *names):
    for name in names:
        page.get_by_role("checkbox", name=name, exact=True).check()


def ask(page, text="a fine day", field="text"):
    page.get_by_label(field, exact=True).fill(text)
    page.get_by_role("button", name="Run").click()


def answered(page, said):
    page.locator("#summary", has_text=said).wait_for()


def block(page, name):
    return page.locator("#answers li").filter(has=page.get_by_role("heading", name=name, exact=True))


def test_the_page_is_plain_files_under_a_strict_policy():
    client = serving(FakeEngine())
    for name, kind in TYPES.items():
        path = "/" if name == "index.html" else f"/page/{name}"
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == kind
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert not re.findall(r"https?://(?!www\.w3\.org/\d{4}/svg)", answer.text), "a request to another host"
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.head(path).status_code == 200
    page = client.get("/").text
    assert not re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", page)
    assert {f"page/{name}" for name in ("page.js", "page.css", "icon.svg")} <= set(
        re.findall(r'(?:src|href)="([^"]+)"', page)
    )
    assert client.get("/page/pages.py").status_code == 404


def test_the_table_shows_each_task(visit, engine):
    engine.found["mood"] = card(
        "mood", metrics={"accuracy": 0.5, "test_accuracy": 0.75}, bytes=2_500_000, resident=False
    )
    page = visit()
    assert sorted(column(page, "name")) == sorted(one.name for one in CARDS)
    row = page.locator("#rows tr", has=page.get_by_role("checkbox", name="mood", exact=True))
    said = row.locator("td").all_inner_texts()[1:]
    assert said == ["mood", "adapter", "classification", "2.5 MB", "308", "accuracy 0.750", said[6], "paged"]
    assert engine.found["mood"].version.startswith(said[6])
    row.locator("td.name").click()
    assert "width 4" in page.inner_text("#detail")
    assert engine.found["mood"].version in page.inner_text("#detail")
    assert page.inner_text("#backbone") == "on tiny"


def test_the_filter_finds_names_kinds_and_labels(visit):
    page = visit()
    for words, found in {"MOO": ["mood"], "class per": ["names"], "law": ["topics"], "nothing of it": []}.items():
        page.get_by_role("searchbox").fill(words)
        assert column(page, "name") == found
    assert page.inner_text("#none") == "No task matches the filter."
    assert page.inner_text("#count") == "0 of 7"


def test_a_heading_sorts_up_and_then_down(visit, engine):
    sizes = {"mood": 30, "spam": 4, "pair": 200}
    engine.found = {name: card(name, bytes=size) for name, size in sizes.items()}
    page = visit()
    head = page.locator("th.size")
    for order, names in (("ascending", ["spam", "mood", "pair"]), ("descending", ["pair", "mood", "spam"])):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        assert column(page, "name") == names
    assert page.locator("th.name").get_attribute("aria-sort") == "none"


def test_two_thousand_tasks_keep_the_document_small(visit, engine):
    engine.found |= {f"task {n}": card(f"task {n}") for n in range(2000)}
    page = visit()
    assert page.locator("#rows tr").count() < 60
    page.locator("#rows tr input").first.focus()
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.ariaLabel") == "writer"
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.ariaLabel") == "topics"
    page.locator("#window").evaluate("view => view.scrollTo(0, view.scrollHeight / 2)")
    page.get_by_role("checkbox", name="task 1000", exact=True).wait_for()
    assert page.locator("#rows tr").count() < 60
    page.get_by_role("searchbox").fill("task 199")
    page.get_by_role("checkbox", name="Select all tasks shown").check()
    assert page.inner_text("#count") == "12 of 2,007, 12 selected"  # 1199 too: words are found anywhere
    page.get_by_role("searchbox").fill("")
    assert page.inner_text("#count") == "2,007, 12 selected"


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


def test_a_server_that_goes_away_is_said_until_it_is_back(visit):
    page = visit(before=lambda page: page.clock.install())
    page.route("**/v1/load", lambda route: route.abort())
    page.clock.run_for(2000)
    page.get_by_role("alert").wait_for()
    assert page.get_by_role("alert").inner_text() == "The load cannot be read: The server does not answer."
    page.unroute("**/v1/load")
    page.clock.run_for(4000)
    page.locator("#error").wait_for(state="hidden")


def test_the_load_is_asked_for_each_second_but_not_for_a_hidden_tab(visit):
    asked = []

    def before(page):
        page.clock.install()
        page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/v1/load") else None)

    def seconds(page, number):
        asked.clear()
        for _ in range(number):
            page.clock.run_for(1000)
            page.evaluate("() => fetch('health').then((answer) => answer.text())")  # the answers before have come
        return len(asked)

    page = visit(before=before)
    page.locator(".tile", has_text="Queue").locator("strong", has_text="3").wait_for()
    assert seconds(page, 4) == 4
    assert "M" in page.locator(".tile path").first.get_attribute("d")
    hide = "(hidden) => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(hide, True)
    assert seconds(page, 4) == 0
    page.evaluate(hide, False)
    assert seconds(page, 4) >= 3  # the first one may fall on the moment of the change


def test_a_task_that_comes_later_is_shown(visit, engine):
    page = visit(before=lambda page: page.clock.install())
    pick(page, "mood")
    engine.found["late"] = card("late")
    page.clock.run_for(40_000)
    page.get_by_role("checkbox", name="late").wait_for()
    assert page.get_by_role("checkbox", name="mood").is_checked()


def test_a_key_is_asked_for_where_it_is_needed_and_sent_as_a_header_only(visit, engine, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"infer:{KEY}\n")
    path.chmod(0o600)
    sent = []
    with served(engine, Keys.read(path)) as address:
        page = visit(address, "#key:visible", lambda page: page.on("request", lambda request: sent.append(request)))
        field = page.get_by_label("API key")
        assert field.get_attribute("type") == "password"
        field.fill("not-this-one")
        page.keyboard.press("Enter")
        page.locator("#key-said", has_text=re.compile("key")).wait_for()
        field.fill(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#rows tr")
        assert not page.locator("#key").is_visible()
        page.locator(".tile", has_text="Queue").locator("strong", has_text="3").wait_for()
        stores = "() => [Object.values(sessionStorage), Object.values(localStorage), document.cookie]"
        assert page.evaluate(stores) == [[KEY], [], ""]
        assert not [request.url for request in sent if KEY in request.url + (request.post_data or "")]
        assert sent[-1].headers["authorization"] == f"Bearer {KEY}"
        page.get_by_role("button", name="Forget the key").click()
        page.wait_for_selector("#key:visible")
        assert page.evaluate(stores) == [[], [], ""]


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
