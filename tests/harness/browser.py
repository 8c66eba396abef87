"""The machine's own Chromium, for tests of pages that people see."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

IMAGES_VARIABLE = "DOCS_IMAGES"
"""The folder of screenshots for the documentation (`DOCS_IMAGES=docs/images`); without it none is kept."""


@contextmanager
def chromium_page(width: int = 1280, height: int = 800) -> Iterator[Page]:
    """A page of a new Chromium; the test is skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as driver:
        # Its own sandbox needs rights that containers do not give.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--no-proxy-server"])
        try:
            yield browser.new_page(viewport={"width": width, "height": height})
        finally:
            browser.close()


def keep_screenshot(page: Page, name: str) -> None:
    """Write a screenshot for the documentation, if it is asked for."""
    if folder := os.environ.get(IMAGES_VARIABLE):
        page.screenshot(path=Path(folder) / name, full_page=True, animations="disabled")
