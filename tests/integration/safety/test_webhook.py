"""A real worker posts the ends of jobs to a real receiver, until that has them, and nothing waits for it."""

import json
from collections.abc import Iterator

import pytest
from redis import Redis

from shared.webhooks import verify_event
from tests.integration.safety.proxied_harness import ProxiedHarness
from tests.integration.safety.recording_proxy import RecordingProxy, Request, Response
from tests.integration.safety.redis_monitor import all_keys
from worker.runs.keys import webhooks_key

SECRET = "whsec_" + "c2VjcmV0" * 5
OLD_SECRET = "whsec_" + "b2xkLW9uZS1v" * 4
PATH = "/hook/?key=hush-in-the-url"
TASKS = 3


@pytest.fixture(scope="module")
def receiver() -> Iterator[RecordingProxy]:
    """Takes every event unless a test answers in another way."""
    receiver = RecordingProxy("http://127.0.0.1:9")
    with receiver.intercept("POST", "/", Response(204)):
        yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, receiver: RecordingProxy) -> Iterator[ProxiedHarness]:
    harness = ProxiedHarness(tmp_path_factory.mktemp("webhook"))
    try:
        harness.sandbox.start()
        harness.connect()
        start_worker(harness, receiver)
        yield harness
    finally:
        harness.close()


def start_worker(harness: ProxiedHarness, receiver: RecordingProxy) -> None:
    secrets = f"{SECRET} {OLD_SECRET}"
    harness.start_worker(WORKER_WEBHOOK_URL=receiver.url + PATH, WORKER_WEBHOOK_SECRET=secrets)


def events(receiver: RecordingProxy, job: str) -> list[Request]:
    """The requests that were received of a job."""
    return [
        request
        for request in receiver.requests("POST", "/")
        if json.loads(request.body)["data"]["job"] == job
    ]


def test_an_end_is_posted_until_the_receiver_has_it(
    harness: ProxiedHarness, receiver: RecordingProxy
) -> None:
    # Given a receiver that is out of order at first
    answers = [Response(503), Response(500, b"<html>"), Response(307, headers={"Location": "/elsewhere"})]
    with receiver.intercept("POST", "/hook", lambda _: answers.pop() if answers else Response(204)):
        # When a run ends
        job = harness.to_task(harness.new_project(TASKS))
        harness.wait_for(lambda: len(events(receiver, job)) == 4, "four attempts")

    # Then each attempt is the same event for the URL of the settings, signed anew with both secrets
    attempts = events(receiver, job)
    assert {attempt.path for attempt in attempts} == {PATH}
    assert len({attempt.headers["webhook-id"] for attempt in attempts}) == 1
    for secret in (SECRET, OLD_SECRET):
        (event,) = {json.dumps(verify_event(each.body, each.headers, secret)) for each in attempts}
    data = json.loads(event)["data"]
    assert (data["status"], data["plugin"], data["result"]["success_count"]) == (
        "SUCCEEDED",
        "echo@1.0.0",
        TASKS,
    )
    # And the receiver that has it hears nothing more
    harness.wait_for(lambda: harness.redis.zcard(webhooks_key()) == 0, "the empty list")
    assert harness.final_statuses(job) == ["SUCCEEDED"]


def test_the_backend_does_not_wait_for_a_hanging_receiver(
    harness: ProxiedHarness, receiver: RecordingProxy
) -> None:
    with receiver.intercept("POST", "/hook", lambda _: Response(204)), receiver.delay("POST", "/hook", 60):
        jobs = [harness.to_task(harness.new_project(1)) for _ in range(12)]

        assert [harness.wait_for_end(job, 20)["status"] for job in jobs] == ["SUCCEEDED"] * 12
        assert not any(request.ended for job in jobs for request in events(receiver, job))


def test_a_receiver_that_is_gone_costs_no_run(harness: ProxiedHarness, receiver: RecordingProxy) -> None:
    with receiver.intercept("POST", "/hook", Response(410)):
        job = harness.to_task(harness.new_project(1))
        harness.wait_for(lambda: harness.redis.zscore(webhooks_key(), job) is None, "the end given up")

        assert harness.wait_for_end(job)["status"] == "SUCCEEDED"
    assert len(events(receiver, job)) <= 1


def test_a_job_whose_message_is_rejected_is_posted(harness: ProxiedHarness, receiver: RecordingProxy) -> None:
    job = harness.new_job(plugin="missing@1.0.0", action="to_task")
    params = harness.to_task_params(harness.new_project(1))
    harness.send_task("to_task", "to_task", {"job": job, "plugin": "missing@1.0.0", "params": params})

    harness.wait_for(lambda: events(receiver, job), "the event")
    event = verify_event(events(receiver, job)[0].body, events(receiver, job)[0].headers, SECRET)
    assert (event["type"], event["data"]["result"]) == ("run.failed", harness.job(job)["result"])


def test_another_worker_posts_what_a_killed_one_left(
    harness: ProxiedHarness, receiver: RecordingProxy
) -> None:
    # Given a worker that is killed while the receiver is out of order
    with receiver.intercept("POST", "/hook", Response(503)):
        job = harness.to_task(harness.new_project(1))
        harness.wait_for(lambda: events(receiver, job), "the first attempt")
        harness.wait_for_end(job)
        harness.worker.kill()
    before = len(events(receiver, job))

    # When another one starts
    start_worker(harness, receiver)

    # Then the receiver has the same event from that
    harness.wait_for(lambda: len(events(receiver, job)) > before, "the event")
    assert len({request.headers["webhook-id"] for request in events(receiver, job)}) == 1


def test_neither_secret_nor_url_is_shown(harness: ProxiedHarness, receiver: RecordingProxy) -> None:
    logs = [path.read_text(errors="replace") for path in (harness.sandbox.directory / "logs").iterdir()]

    assert any("end sent to the webhook" in log for log in logs)
    with Redis.from_url(harness.redis_url, decode_responses=True, encoding_errors="replace") as redis:
        kept = repr(all_keys(redis))
    for text in (SECRET, OLD_SECRET, "hush-in-the-url"):
        assert not [log for log in logs if text in log]
        assert text not in kept
