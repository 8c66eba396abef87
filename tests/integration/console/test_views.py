"""The other views of the page in a real browser: waiting lists, dead letters, queues, workers, the token."""

import re

import httpx
from playwright.sync_api import Browser, expect

from tests.harness.brokers import session_broker
from tests.integration.console.conftest import Visitor
from tests.integration.console.console_harness import QUEUES, ConsoleHarness


def test_waiting_run_is_shown_with_its_deadline_and_why(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given a run that waits for a pre-processor which nobody deploys
    page = visitor.open("waiting")
    job = harness.waiting_run()

    # Then the list says who waits for what, until when, and what has become of the deployment
    group = page.locator("section.card", has_text="pre-processor echo@1.0.0")
    waiter = group.locator("li", has=page.get_by_role("link", name=job, exact=True))
    expect(waiter).to_contain_text("until")
    expect(group.locator(".why").first).to_contain_text(re.compile("deployed by job"))

    # When it is stopped, then it leaves the list
    harness.stop(job)
    expect(waiter).to_have_count(0)


def test_dead_letter_appears_and_is_dropped(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given the list of dead letters in a browser, to which one is added
    page = visitor.open("letters")
    id_ = harness.dead_letter()
    card = page.locator("li.card", has_text=id_)
    expect(card).to_be_visible()

    # When it is dropped
    card.get_by_role("button", name=re.compile("^Drop")).click()
    card.get_by_role("button", name=re.compile("^Throw it away")).click()

    # Then it is gone
    expect(card.locator(".said").last).to_have_text("dropped")
    assert all(letter["id"] != id_ for letter in harness.get("dead-letters")["letters"])


def test_replay_of_a_dead_letter_starts_its_run(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given a message that was rejected, because its release was not there yet
    job, id_ = harness.rejected_run()
    page = visitor.open("letters")
    card = page.locator("li.card", has_text=id_)

    # When the release is there, and the message is sent again
    harness.add_missing_release()
    card.get_by_role("button", name=re.compile("^Replay")).click()
    card.get_by_role("button", name=re.compile("^Send it again")).click()

    # Then its run goes to its end
    expect(card.locator(".said").first).to_have_text("sent again")
    harness.wait_for(lambda: harness.job(job)["status"] == "SUCCEEDED", "the end of the replayed run")


def test_replay_that_would_start_nothing_says_why(visitor: Visitor, harness: ConsoleHarness) -> None:
    id_ = harness.dead_letter()
    page = visitor.open("letters")
    card = page.locator("li.card", has_text=id_)

    card.get_by_role("button", name=re.compile("^Replay")).click()
    card.get_by_role("button", name=re.compile("^Send it again")).click()

    expect(card.locator(".said").first).to_contain_text("cannot be replayed")
    # The browser says so of every answer such as this.
    assert all("409" in said or said.endswith("/replay") for said in visitor.complaints)
    visitor.complaints.clear()


def test_queues_and_workers_are_shown(visitor: Visitor, harness: ConsoleHarness) -> None:
    page = visitor.open("queues")

    if session_broker.is_rabbitmq:
        expect(page.get_by_text("This broker shows its queues itself.")).to_be_visible()
    else:
        expect(page.get_by_role("row", name=re.compile("^annotate "))).to_be_visible()
    worker = page.get_by_role("row", name=re.compile("^worker1@"))
    for queue in QUEUES.split(","):
        expect(worker).to_contain_text(queue)


def test_lost_agent_is_said_and_no_error_page(visitor: Visitor, harness: ConsoleHarness) -> None:
    # Given a sandbox without Ray, whose agent has no URL
    page = visitor.open("deployments")

    expect(page.locator(".note")).to_have_text("no agent is known")


def test_korean_comes_from_the_browser_and_the_switch(visitor: Visitor) -> None:
    # Given a browser whose user reads Korean
    page = visitor.open("runs", locale="ko-KR")
    expect(page.get_by_role("heading", level=1)).to_have_text("실행")
    assert page.locator("html").get_attribute("lang") == "ko"

    # When the language is switched, then it stays so
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Runs")
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("Runs")


def test_token_is_asked_for_and_opens_the_page(browser: Browser, harness: ConsoleHarness) -> None:
    # Given a page with a token
    token = "a-token-of-the-tests"
    url = harness.sandbox.start_console(env={"WORKER_CONSOLE_TOKEN": token})
    assert httpx.get(f"{url}/api/dead-letters", trust_env=False).status_code == 401
    context = browser.new_context(locale="en-GB")
    page = context.new_page()

    # When a wrong one is given, then the form says so
    page.goto(url)
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("That is not the token.")

    # When it is the right one, then the runs are there, and the address does not show it
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator(".connection")).to_have_text("live")
    assert token not in page.url

    # When the reader logs out, then the page is closed again
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    assert page.request.get(f"{url}/api/dead-letters").status == 401
    context.close()
