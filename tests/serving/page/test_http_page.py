"""The page at `/` in a real Chromium, over a server whose engine is a fake one."""

import re

from intarsia.serving.http import Keys
from intarsia.serving.http.pages import TYPES
from serving.fake_engine import CARDS, FakeEngine, card, serving
from serving.page_site import column, pick, served

KEY = "a-key-for-the-page-0123"


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
