"""The live page is usable by everybody: axe finds nothing, on a phone and a desktop, in light and dark."""

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.integration.console.conftest import Visitor
from tests.integration.console.console_harness import ConsoleHarness


@pytest.fixture(scope="module")
def jobs(harness: ConsoleHarness) -> Iterator[dict[str, str]]:
    """Runs that failed in part, now and days ago, one that waits, and a dead letter: no view is empty."""
    failed = harness.to_task(harness.new_project(6), plugin="hostile@1.0.0")
    harness.wait_for_end(failed)
    waiting = harness.waiting_run()
    harness.dead_letter()
    yield {"failed": failed, "waiting": waiting, "expired": harness.expired_run()}
    harness.stop(waiting)


RUNS = ("runs/{failed}", "runs/{waiting}", "runs/{expired}")
OTHERS = (*RUNS, "ended", "waiting", "deployments", "letters", "queues")
ADDRESSES = ["runs", *(pytest.param(address, marks=pytest.mark.browser) for address in OTHERS)]
"""The first one stands for all in `make test`; so do a phone and the dark scheme."""


def show(visitor: Visitor, address: str, jobs: dict[str, str], **options: Any) -> Page:
    page = visitor.open(address.format(**jobs), **options)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(page.locator(".connection")).not_to_have_class("connection lost")
    if address != "deployments":
        expect(page.locator("main li, tbody tr").first).to_be_visible()
    return page


@pytest.mark.parametrize("scheme", ["dark", pytest.param("light", marks=pytest.mark.browser)])
@pytest.mark.parametrize("size", ["phone", pytest.param("desktop", marks=pytest.mark.browser)])
@pytest.mark.parametrize("address", ADDRESSES)
def test_axe_finds_nothing(
    visitor: Visitor, jobs: dict[str, str], address: str, size: str, scheme: Any
) -> None:
    # The checks are put in from outside, which the page's own policy forbids.
    page = show(visitor, address, jobs, size=size, color_scheme=scheme, bypass_csp=True)

    results = Axe().run(page)

    found = [
        f"{violation['id']}: {node['html']} {node['failureSummary']}"
        for violation in results.response["violations"]
        for node in violation["nodes"]
    ]
    assert found == []


@pytest.mark.parametrize("address", ADDRESSES)
def test_nothing_is_wider_than_a_phone(visitor: Visitor, jobs: dict[str, str], address: str) -> None:
    page = show(visitor, address, jobs, size="phone")

    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("address", ["runs", "ended"])
def test_rows_are_not_cut_on_a_desktop(visitor: Visitor, jobs: dict[str, str], address: str) -> None:
    page = show(visitor, address, jobs, size="desktop")

    cut = "rows => rows.filter(row => row.scrollWidth > row.clientWidth).map(row => row.textContent)"
    assert page.locator("li.run").evaluate_all(cut) == []


def test_everything_is_reached_by_keyboard(visitor: Visitor, jobs: dict[str, str]) -> None:
    # Given the list of runs
    page = show(visitor, "runs", jobs)
    expect(page.get_by_role("link", name=jobs["waiting"], exact=True)).to_be_visible()

    # When somebody presses Tab until the run is reached, and Enter
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == jobs["waiting"]:
            break
    page.keyboard.press("Enter")

    # Then its page is shown, and its stop button is the first that is reached there
    expect(page.get_by_role("heading", level=1)).to_contain_text(jobs["waiting"])
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent"))
    assert "Stop" in reached
