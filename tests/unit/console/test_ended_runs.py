"""The page's list of ended runs, one of them when its own keys have expired, and its retry."""

import json
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from httpx import Response

from shared.messages import Message, ToTaskMessage
from shared.statuses import JobStatus
from tests.unit.console.browser import Browser
from tests.unit.runs.example_workflow import FIRST
from tests.unit.workflow.failed_tasks import PARAMS, add_failed_run, expire_run
from worker.console import server
from worker.console.access import ACTION_HEADER
from worker.console.overview import Overview
from worker.console.server import Console
from worker.runs.model import End
from worker.runs.runs import Runs
from worker.workflow import ended_runs
from worker.workflow.retry import RetryProblem

ACTION = {ACTION_HEADER: "1"}
TOKEN = "a-token-of-some-length"


@pytest.fixture
def priorities() -> list[int | None]:
    """Those of what the page publishes."""
    return []


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, priorities: list[int | None]) -> list[Any]:
    """What the page publishes."""
    published: list[Any] = []

    def publish(_: object, message: Message, *, priority: int | None) -> None:
        published.append(message)
        priorities.append(priority)

    monkeypatch.setattr(server.Publisher, "publish", publish)
    return published


def new_browser(redis: fakeredis.FakeRedis, **options: Any) -> Browser:
    asynchronous = fakeredis.FakeAsyncRedis(
        server=redis.connection_pool.connection_kwargs["server"], decode_responses=True
    )
    overview = Overview(redis, "memory://", None)
    return Browser(Console(redis, asynchronous, overview, "memory://", **options).app)


@pytest.fixture
def browser(redis: fakeredis.FakeRedis) -> Browser:
    return new_browser(redis)


def retry(browser: Browser, job: str, content: object, **headers: str) -> Response:
    return browser.post(f"/api/runs/{job}/retry", content=json.dumps(content), headers={**ACTION, **headers})


def test_ended_runs_are_listed_by_pages_and_status(
    browser: Browser, redis: fakeredis.FakeRedis, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given ended runs on two pages, of which the own keys have expired
    monkeypatch.setattr(ended_runs, "PAGE", 2)
    for job in ("1", "2", "3"):
        add_failed_run(redis, runs, job, 5)
        expire_run(redis, job)

    # When the pages are read
    first = browser.get("/api/ended").json()
    second = browser.get("/api/ended", params={"from": first["next"]}).json()

    # Then the last one comes first, with what is kept of it
    assert [[run["job"] for run in page["runs"]] for page in (first, second)] == [["3", "2"], ["1"]]
    assert (first["count"], second["next"]) == (3, None)
    kept = first["runs"][0]
    assert (kept["status"], kept["overall"], kept["failed"]) == ("SUCCEEDED", 100.0, 1)
    assert kept["plugin"] == "digits@1.0.0"
    assert "message" not in kept

    # And others are left out where a status is asked for
    assert browser.get("/api/ended?status=FAILED").json()["runs"] == []


@pytest.mark.parametrize("query", ["status=WRONG", "from=x", "from=nan:0", "from=1.5:9999999"])
def test_list_that_cannot_be_asked_for_is_an_error(browser: Browser, query: str) -> None:
    assert browser.get(f"/api/ended?{query}").status_code == 400


def test_run_is_shown_as_far_as_it_is_kept(browser: Browser, redis: fakeredis.FakeRedis, runs: Runs) -> None:
    # Given an ended run
    add_failed_run(redis, runs, "7", 5, 6)
    before = browser.get("/api/runs/7").json()

    # When its own keys expire
    expire_run(redis, "7")
    after = browser.get("/api/runs/7").json()

    # Then its record and the failed tasks are shown, without their errors
    assert before["failures"] == [{"task": 5, "error": "broken"}, {"task": 6, "error": "broken"}]
    assert after["failures"] == [{"task": 5, "error": None}, {"task": 6, "error": None}]
    assert after["values"] == before["values"]
    assert after["is_retryable"]


def test_steps_of_a_run_that_ended_days_ago_are_shown(redis: fakeredis.FakeRedis, runs: Runs) -> None:
    # Given a run that ended days ago
    message = ToTaskMessage.model_validate({"job": "7", "plugin": "digits@1.0.0", "params": PARAMS})
    runs.store.accept(message, "to_task")
    runs.store.claim_step("7", FIRST, "", "token", 30, 0, False)
    runs.finish("7", End(JobStatus.SUCCEEDED, {}))
    expire_run(redis, "7")

    # When a page is served since, then it has the run's steps with their times
    found = new_browser(redis).get("/api/runs/7").json()
    [step] = found["steps"]
    assert step["name"] == FIRST.name
    assert found["values"]["started"] <= step["since"] < found["values"]["updated"] + 1


def test_a_new_run_of_a_job_has_nothing_of_the_earlier_one(
    browser: Browser, redis: fakeredis.FakeRedis, runs: Runs
) -> None:
    # Given an ended run with failed tasks, whose own keys have expired
    add_failed_run(redis, runs, "7", 5)
    expire_run(redis, "7")

    # When a message for its job comes again
    message = ToTaskMessage.model_validate({"job": "7", "plugin": "digits@1.0.0", "params": PARAMS})
    runs.store.accept(message, "to_task")

    # Then that run is shown, with nothing to retry
    found = browser.get("/api/runs/7").json()
    assert (found["values"]["status"], found["failures"], found["is_retryable"]) == ("PENDING", [], False)


def test_retry_is_published_as_the_new_job(
    browser: Browser, redis: fakeredis.FakeRedis, runs: Runs, published: list[Any]
) -> None:
    # Given a run that ended days ago, with failed tasks
    add_failed_run(redis, runs, "7", 5)
    expire_run(redis, "7")

    # When it is retried as job 8
    answer = retry(browser, "7", {"new_job": "8"})

    # Then its message is published for the failed tasks alone
    assert (answer.status_code, answer.json()) == (200, {"job": "8"})
    assert [(each.task, each.job, each.only_failed_of) for each in published] == [("to_task", "8", "7")]


def test_retry_that_would_start_nothing_says_why(
    browser: Browser, redis: fakeredis.FakeRedis, runs: Runs, published: list[Any]
) -> None:
    # Given a run with failed tasks, one without, and one that is forgotten
    add_failed_run(redis, runs, "7", 5)
    add_failed_run(redis, runs, "fine")
    wanted = {("7", "fine"): 409, ("7", "7"): 409, ("fine", "8"): 409, ("gone", "8"): 404, ("7", "a b"): 422}

    # When they are retried as a job that is taken, or as one that is none
    answers = {jobs: retry(browser, jobs[0], {"new_job": jobs[1]}) for jobs in wanted}

    # Then each answer names the reason, in a word for the page as well, and nothing is published
    assert {jobs: answer.status_code for jobs, answer in answers.items()} == wanted
    problems = [answer.json()["problem"] for answer in answers.values()]
    assert problems == ["job_taken", "job_taken", "none_failed", "not_kept", "invalid"]
    assert "job fine has a run already: SUCCEEDED" in answers["7", "fine"].json()["detail"]
    assert published == []


@pytest.mark.parametrize("content", [[], "8", {}, None, {"job": "8"}, {"new_job": "8" * 5_000}])
def test_retry_without_a_job_is_an_error(
    browser: Browser, redis: fakeredis.FakeRedis, runs: Runs, published: list[Any], content: object
) -> None:
    add_failed_run(redis, runs, "7", 5)

    assert retry(browser, "7", content).status_code == 400
    assert published == []


def test_retry_has_the_options_of_the_command(
    browser: Browser, redis: fakeredis.FakeRedis, runs: Runs, published: list[Any]
) -> None:
    # Given a run with failed tasks, whose release was mended since
    add_failed_run(redis, runs, "7", 5)
    options = {"plugin": "digits@1.0.1", "skip_annotated": True, "dry_run": True}

    # When it is retried with that release, without tasks that have data, to see what there is to do
    assert retry(browser, "7", {"new_job": "8", **options}).status_code == 200
    assert retry(browser, "7", {"new_job": "9", "plugin": None, "skip_annotated": False}).status_code == 200

    # Then the message says so, and without options it is as the run's was
    found = [(each.plugin, each.skip_annotated, each.dry_run) for each in published]
    assert found == [("digits@1.0.1", True, True), ("digits@1.0.0", False, False)]


@pytest.mark.parametrize(
    ("option", "priority"),
    [({}, None), ({"priority": None}, None), ({"priority": 0}, 0), ({"priority": 9}, 9)],
)
@pytest.mark.usefixtures("published")
def test_retry_is_published_with_its_priority(
    browser: Browser,
    redis: fakeredis.FakeRedis,
    runs: Runs,
    priorities: list[int | None],
    option: dict[str, object],
    priority: int | None,
) -> None:
    add_failed_run(redis, runs, "7", 5)

    assert retry(browser, "7", {"new_job": "8", **option}).status_code == 200
    assert priorities == [priority]


@pytest.mark.parametrize("value", [-1, 10, 10**400, 6.0, float("nan"), "6", "", True, False, [6], {}])
def test_what_is_no_priority_of_a_retry_is_an_error(
    browser: Browser, redis: fakeredis.FakeRedis, runs: Runs, published: list[Any], value: object
) -> None:
    add_failed_run(redis, runs, "7", 5)

    answer = retry(browser, "7", {"new_job": "8", "priority": value})

    assert (answer.status_code, published) == (400, [])
    assert answer.json()["detail"] == "priority must be a whole number from 0 to 9"


@pytest.mark.parametrize(
    ("option", "status", "why"),
    [
        ({"plugin": "digits"}, 422, "plugin"),
        ({"plugin": 7}, 422, "plugin"),
        ({"skip_annotated": "yes"}, 422, "skip_annotated"),
        ({"dry_run": [[[1]]]}, 422, "dry_run"),
        ({"dryrun": True}, 400, "unknown parameter 'dryrun'"),
    ],
)
def test_wrong_option_of_a_retry_is_named(
    browser: Browser,
    redis: fakeredis.FakeRedis,
    runs: Runs,
    published: list[Any],
    option: dict[str, object],
    status: int,
    why: str,
) -> None:
    add_failed_run(redis, runs, "7", 5)

    answer = retry(browser, "7", {"new_job": "8", **option})

    assert (answer.status_code, published) == (status, [])
    assert why in answer.json()["detail"]


@pytest.mark.parametrize(
    "body", ["[" * 4_000, '{"new_job": ' + "[" * 4_000, '{"new_job": ' * 300, "{", "\xff"]
)
def test_body_that_cannot_be_read_is_an_error(
    browser: Browser, redis: fakeredis.FakeRedis, runs: Runs, published: list[Any], body: str
) -> None:
    add_failed_run(redis, runs, "7", 5)

    answer = browser.post("/api/runs/7/retry", content=body.encode("latin-1"), headers=ACTION)

    assert answer.status_code == 400
    assert answer.json()["detail"] == "the body must be a JSON object with new_job"
    assert published == []


def test_job_that_is_nested_is_an_error(
    browser: Browser, redis: fakeredis.FakeRedis, runs: Runs, published: list[Any]
) -> None:
    add_failed_run(redis, runs, "7", 5)

    for levels in (10, 100, 400, 800, 900):
        body = '{"new_job": ' + "[" * levels + "]" * levels + "}"
        answer = browser.post("/api/runs/7/retry", content=body, headers=ACTION)
        assert answer.status_code in (400, 422), levels
    assert published == []


def test_retry_is_guarded_as_other_actions_are(
    redis: fakeredis.FakeRedis, runs: Runs, published: list[Any]
) -> None:
    # Given a page with a token
    add_failed_run(redis, runs, "7", 5)
    browser = new_browser(redis, token=TOKEN)
    bearer = {"Authorization": f"Bearer {TOKEN}"}

    # Then neither a stranger nor another site's page retries a run
    assert retry(browser, "7", {"new_job": "8"}).status_code == 401
    assert retry(browser, "7", {"new_job": "8"}, **bearer, Origin="http://evil.example").status_code == 403
    assert published == []
    assert retry(browser, "7", {"new_job": "8"}, **bearer).status_code == 200


def test_every_problem_of_a_retry_has_words_in_both_languages() -> None:
    page = Path(server.__file__).parent / "static" / "i18n.js"
    words = page.read_text(encoding="utf-8")

    assert [problem for problem in RetryProblem if words.count(f"retry_{problem}: ") != 2] == []
