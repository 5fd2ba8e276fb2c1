"""A browser, and a server with a fake engine for it to look at."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from intarsia.serving.http import Keys, create_app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# Every element with text of its own whose colour stands out by less than 4.5 : 1 from what is behind it.
PALE = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => {
    const [r, g, b] = rgba(colour).map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (rgba(colour)[3] === 255) return colour;
    }
    return 'white';
  };
  const own = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const seen = [...document.body.querySelectorAll('*')].filter((element) =>
    (own(element) || /^(INPUT|TEXTAREA)$/.test(element.tagName)) && element.checkVisibility());
  const pale = seen.flatMap((element) => {
    const [a, b] = [luminance(getComputedStyle(element).color), luminance(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return contrast >= 4.5 ? [] : [`${element.tagName} ${element.className} ${element.textContent}: ${contrast.toFixed(2)}`];
  });
  return {seen: seen.length, pale, ground: luminance(getComputedStyle(document.body).backgroundColor)};
}"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window. Skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def served(engine: Any, keys: Keys | None = None) -> Iterator[str]:
    """The address of a server over this engine, in a thread."""
    config = uvicorn.Config(create_app(engine, keys), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = server.force_exit = True
    thread.join()


def complaints(page: Any) -> list[str]:
    """Collects what the page itself finds wrong from now on: exceptions, and breaches of its policy."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))

    def note(line: Any) -> None:
        if line.type == "error" and "Failed to load resource" not in line.text:
            found.append(line.text)

    page.on("console", note)
    return found


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
