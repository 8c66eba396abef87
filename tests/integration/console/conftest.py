"""A sandbox without Ray, a worker, the live page, and the Chromium of this machine."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.harness.browser import chromium
from tests.integration.console.console_harness import ConsoleHarness

expect.set_options(timeout=60_000)  # milliseconds that a busy machine may take

VIEWPORTS = {"phone": {"width": 360, "height": 740}, "desktop": {"width": 1280, "height": 860}}


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleHarness]:
    harness = ConsoleHarness(tmp_path_factory.mktemp("console"))
    try:
        harness.start()
        yield harness
    finally:
        harness.close()


# For a module: after it come tests with event loops, or a Chromium, of their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


class Visitor:
    """Opens pages in a browser of its own, and notes what the browser complains of."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser, self._url = browser, url
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []

    def open(self, address: str = "", *, size: str = "desktop", url: str = "", **options: Any) -> Page:
        """A page of the console, such as `runs/42`; `url`: of another console than the harness's."""
        context = self._browser.new_context(viewport=VIEWPORTS[size], **{"locale": "en-GB", **options})
        self._contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("response", lambda answer: self._note("error" if answer.status >= 400 else "", answer.url))
        url = url or self._url
        page.goto(f"{url}/#/{address}" if address else url)
        return page

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def visitor(browser: Browser, harness: ConsoleHarness) -> Iterator[Visitor]:
    visitor = Visitor(browser, harness.url)
    yield visitor
    visitor.close()
    assert visitor.complaints == []
