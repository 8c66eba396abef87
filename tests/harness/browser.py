"""The machine's own Chromium, for tests of pages that people see."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

IMAGES_VARIABLE = "DOCS_IMAGES"
"""The folder of screenshots for the documentation (`DOCS_IMAGES=docs/images`); without it none is kept."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A new Chromium; the test is skipped where there is none, or none that starts.

    While it lives, its driver's event loop is the running one of this thread: tests with a loop of their own,
    or a Chromium of their own, come after it.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as driver:
        # Its own sandbox needs rights that containers do not give; the pages are ours.
        arguments = ["--no-sandbox", "--no-proxy-server"]
        try:
            browser = driver.chromium.launch(executable_path=program, args=arguments)
        except Error as error:
            pytest.skip(f"Chromium does not start: {error.message.splitlines()[0]}")
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def chromium_page(width: int = 1280, height: int = 800) -> Iterator[Page]:
    """A page of a new Chromium, see `chromium`."""
    with chromium() as browser:
        yield browser.new_page(viewport={"width": width, "height": height})


def keep_screenshot(page: Page, name: str) -> None:
    """Write a screenshot for the documentation, if it is asked for."""
    if folder := os.environ.get(IMAGES_VARIABLE):
        page.screenshot(path=Path(folder) / name, full_page=True, animations="disabled")
