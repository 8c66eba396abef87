"""Runs that have ended, in a real browser: their list, one that is long over, and a retry of what failed."""

import re

from playwright.sync_api import expect

from tests.integration.console.conftest import Visitor
from tests.integration.console.console_harness import ConsoleHarness


def test_run_that_ended_before_the_page_was_served_opens(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given a run that ended days ago, and a page that is served since
    job = harness.expired_run()
    page = visitor.open("ended", url=harness.sandbox.start_console())

    # When it is opened from the list of those with its status
    page.get_by_label("Status").select_option(label="succeeded")
    page.get_by_role("link", name=job, exact=True).click()

    # Then what is kept of it is shown, and what is not kept is said to be so
    expect(page.get_by_role("heading", level=1)).to_contain_text("succeeded")
    expect(page.locator("dd", has_text="6 of 6 tasks, 3 failed")).to_be_visible()
    steps = ["initialize", "prepare", "fetch_tasks", "spread", "finalize"]
    expect(page.locator(".timeline .name")).to_have_text([f"to_task.{step}" for step in steps])
    expect(page.locator(".failures li")).to_have_count(3)
    expect(page.locator(".failures li").first).to_contain_text("its error is not kept any more")
    expect(page.get_by_text("The log of this run is not kept any more.")).to_be_visible()


def test_run_that_ends_meanwhile_comes_first(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given the list of ended runs in a browser
    first = harness.to_task(harness.new_project(2))
    harness.wait_for_end(first)
    page = visitor.open("ended")
    expect(page.locator("li.run .job").first).to_have_text(first)

    # When another run ends
    job = harness.to_task(harness.new_project(2))

    # Then it is put before the others, and is not there where another status is asked for
    expect(page.locator("li.run .job").first).to_have_text(job)
    expect(page.get_by_role("link", name=first, exact=True)).to_be_visible()
    page.get_by_label("Status").select_option(label="failed")
    expect(page.get_by_role("link", name=job, exact=True)).to_have_count(0)


def test_older_runs_are_on_further_pages(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given more runs than a page shows
    jobs = harness.add_ended_runs(150)
    page = visitor.open("ended")
    page.get_by_label("Status").select_option(label="stopped")
    expect(page.locator(".count")).to_have_text(re.compile(r"The latest 100 of 1\d\d\."))
    expect(page.get_by_role("link", name=jobs[0], exact=True)).to_have_count(0)

    # When more are asked for
    page.get_by_role("button", name="Show more").click()

    # Then the oldest is there, and each is there once
    expect(page.get_by_role("link", name=jobs[0], exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    shown = page.locator("li.run .job").all_text_contents()
    assert len(shown) == len(set(shown)) >= 150


def test_failed_tasks_are_retried_by_keyboard(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given the page of a run that ended days ago, three of whose tasks failed
    job, new_job = harness.expired_run(), harness.new_job()
    page = visitor.open(f"runs/{job}")

    # When the number of a new job is typed, and Enter pressed
    page.get_by_label("Job that retries them").focus()
    page.keyboard.type(new_job)
    page.keyboard.press("Enter")

    # Then that job annotates exactly these, and its run is a link away
    page.get_by_role("link", name=f"Job {new_job}").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Job {new_job}")
    expect(page.locator("dd", has_text="3 of 3 tasks, 3 failed")).to_be_visible()


def test_dry_run_of_a_retry_says_what_there_is_to_do(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given the page of a run three of whose tasks failed
    job, new_job = harness.expired_run(), harness.new_job()
    page = visitor.open(f"runs/{job}")

    # When a dry run of its retry is asked for
    page.get_by_label("Job that retries them").fill(new_job)
    page.get_by_label("dry run").check()
    page.get_by_role("button", name="Retry the failed tasks").click()

    # Then the log of the new job says what there is to do
    page.get_by_role("link", name=f"Job {new_job}").click()
    expect(page.locator(".log li", has_text="Dry run: 3 tasks in 1 chunks")).to_be_visible()


def test_retry_as_a_job_that_is_taken_says_so(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given the page of a run with failed tasks, in Korean
    job = harness.expired_run()
    page = visitor.open(f"runs/{job}", locale="ko-KR")

    # When it is retried as a job that has a run, and as one that cannot be
    said = page.locator(".retry .said")
    taken, unusable = f"작업 {job}에는 이미 실행이 있습니다", "그렇게 다시 실행할 수 없습니다"
    for number, words in ((job, taken), ("<b>", unusable)):
        page.get_by_label("다시 실행할 작업").fill(number)
        page.get_by_role("button", name="실패한 태스크 다시 실행").click()

        # Then the page says so
        expect(said).to_contain_text(words)
    # The browser says so of every answer such as this.
    assert all("409" in each or "422" in each or each.endswith("/retry") for each in visitor.complaints)
    visitor.complaints.clear()


def test_run_without_failed_tasks_is_not_retried(visitor: Visitor, harness: ConsoleHarness) -> None:
    job = harness.to_task(harness.new_project(2))
    harness.wait_for_end(job)

    page = visitor.open(f"runs/{job}")

    expect(page.locator("dd", has_text="2 of 2 tasks")).to_be_visible()
    expect(page.get_by_label("Job that retries them")).to_be_hidden()
