"""A browser, a fake engine behind a server for it to look at, and a way to open the page."""

import pytest

from serving.fake_engine import FakeEngine
from serving.page_site import chromium, complaints, served


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
