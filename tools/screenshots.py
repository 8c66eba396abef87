"""Take the screenshots of the live page for the docs, of a demo that is kept open.

    make demo KEEP=1                                    # in another shell; it says the URL
    python -m tools.screenshots http://127.0.0.1:PORT

`--failed` names a run with failed tasks, which a demo has not; `--only` takes some of them again.
Writes `docs/images/console-*.png`. Needs Chromium.
"""

import argparse
import shutil
from typing import Final

from playwright.sync_api import Browser, Page, sync_playwright

from tools.tree import ROOT

FOLDER: Final = ROOT / "docs" / "images"
DESKTOP, PHONE = (1280, 860), (360, 740)

SHOTS: Final = (
    ("runs", "runs", DESKTOP, "light", "en-GB"),
    ("run", "runs/{job}", DESKTOP, "dark", "en-GB"),
    ("ended", "ended", DESKTOP, "light", "en-GB"),
    ("retry", "runs/{failed}", DESKTOP, "light", "en-GB"),
    ("labels", "labels", DESKTOP, "light", "en-GB"),
    ("deployments", "deployments", DESKTOP, "light", "en-GB"),
    ("queues", "queues", DESKTOP, "dark", "en-GB"),
    ("phone", "runs/{job}", PHONE, "light", "en-GB"),
    ("phone-korean", "runs", PHONE, "dark", "ko-KR"),
)
"""Name, address, size, colours and language of each."""


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--job", default="1", help="The run whose page is shown.")
    parser.add_argument("--failed", default="1", help="The run whose failed tasks are shown.")
    parser.add_argument(
        "--only", nargs="*", default=[shot[0] for shot in SHOTS], help="The names of those to take."
    )
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, address, size, scheme, language in SHOTS:
            if name not in options.only:
                continue
            view = address.format(job=options.job, failed=options.failed)
            page = _open(browser, f"{options.url}/#/{view}", size, scheme, language)
            page.screenshot(path=FOLDER / f"console-{name}.png")
            page.context.close()
        browser.close()


def _open(browser: Browser, url: str, size: tuple[int, int], scheme: str, language: str) -> Page:
    viewport = {"width": size[0], "height": size[1]}
    context = browser.new_context(viewport=viewport, color_scheme=scheme, locale=language)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    page.locator("main li:visible, tbody tr:visible, .note:visible").first.wait_for()
    page.wait_for_timeout(7_000)  # for what is asked of agents and workers
    return page


if __name__ == "__main__":
    main()
