"""The live page in a real browser, on runs of a real worker."""

import re

from playwright.sync_api import expect

from tests.integration.console.conftest import Visitor
from tests.integration.console.console_harness import HOSTILE_TEXT, ConsoleHarness


def test_run_is_followed_from_its_message_to_its_end(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given a list of runs in a browser
    page = visitor.open("runs")
    expect(page.locator(".connection")).to_have_text("live")

    # When a message is published
    job = harness.to_task(harness.new_project(40), plugin="slow@1.0.0")

    # Then its run appears, gets on and ends, without a reload
    row = page.locator("li.run", has=page.get_by_role("link", name=job, exact=True))
    expect(row.locator(".status")).to_have_text("running")
    expect(row.locator(".tasks")).to_have_text(re.compile(r"[1-9]\d* of 40 tasks"))
    expect(row.locator(".status")).to_have_text("succeeded")
    expect(row.locator(".tasks")).to_have_text("40 of 40 tasks")
    expect(row.locator("progress")).to_have_js_property("value", 100)


def test_run_has_a_time_line_of_its_steps(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given a run that has ended while the page was served
    job = harness.to_task(harness.new_project(2))
    harness.wait_for_end(job)

    # Then its page has each step, with its times
    page = visitor.open(f"runs/{job}")
    steps = page.locator(".timeline .name")
    expect(steps).to_have_text(
        ["to_task.initialize", "to_task.prepare", "to_task.fetch_tasks", "to_task.spread", "to_task.finalize"]
    )
    expect(page.locator("dd", has_text="2 of 2 tasks")).to_be_visible()


def test_log_comes_live_and_is_searched(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given the page of a run some of whose tasks fail
    job = harness.to_task(harness.new_project(6), plugin="hostile@1.0.0")
    page = visitor.open(f"runs/{job}")
    log = page.locator(".log li")
    expect(log.filter(has_text="SUCCEEDED")).to_be_visible()

    # When somebody searches, then only those lines are shown, with what was searched for marked
    task = harness.get(f"runs/{job}")["failures"][0]["task"]
    page.get_by_label("Search the log").fill(f"task {task} FAILED")
    expect(log).to_have_count(1)
    expect(log.locator("mark")).to_have_text(f"Task {task} failed")

    # When only warnings are to be shown, then the others are not
    page.get_by_label("Search the log").fill("")
    page.get_by_label("Level").select_option("warning")
    expect(log.filter(has_text="failed")).not_to_have_count(0)
    expect(log.filter(has_text="SUCCEEDED")).to_have_count(0)


def test_hostile_texts_stay_texts(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given a plugin whose errors are markup, and a rejected message that is
    job = harness.to_task(harness.new_project(4), plugin="hostile@1.0.0")
    harness.wait_for_end(job)
    harness.dead_letter()

    # Then the page shows them letter by letter, and runs none of it
    page = visitor.open(f"runs/{job}")
    expect(page.locator(".failures li").first).to_contain_text(HOSTILE_TEXT)
    expect(page.locator(".log li", has_text="failed").first).to_contain_text(HOSTILE_TEXT)
    page.get_by_role("link", name="Dead letters").click()
    expect(page.locator(".card h2").first).to_contain_text("<img")
    assert "hacked" not in page.title()
    assert page.locator("main img, main script").count() == 0


def test_stop_ends_a_run(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given a run that takes minutes
    job = harness.to_task(harness.new_project(2_000), plugin="slow@1.0.0")
    page = visitor.open(f"runs/{job}")
    expect(page.locator("h1 .status")).to_have_text("running")

    # When stop is pressed, and pressed again to confirm it
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Stop it now?").click()

    # Then the run ends, here and in the backend
    expect(page.locator("h1 .status")).to_have_text("stopped")
    assert harness.wait_for_end(job)["status"] == "STOPPED"
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
