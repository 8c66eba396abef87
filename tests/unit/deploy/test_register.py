"""The application's record in the backend."""

from dataclasses import replace
from typing import Any

import pytest

from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.deploy.deploy_harness import PLAN, DeployHarness
from worker.deploy.plan import REGISTER, DeployRun
from worker.deploy.register import register
from worker.platform import ClientConnectionError, ClientTimeoutError, MalformedResponseError, ServerError
from worker.pre_processor.shared_requests import taken_key
from worker.pre_processor.waitlist import AWAIT_READY, Waitlist, WaitlistName
from worker.runs.keys import lock_key, run_key
from worker.runs.model import Finish, Outcome, Reschedule


def post(harness: DeployHarness) -> Outcome:
    harness.update_state(plan=PLAN)
    return harness.step(REGISTER, lambda run: register(run, harness.services))


class KilledError(BaseException):
    """The process is gone."""


def post_and_die(harness: DeployHarness) -> None:
    """The step posts the record; its worker dies before the run has ended."""

    def killed(run: DeployRun) -> Outcome:
        register(run, harness.services)
        raise KilledError

    harness.update_state(plan=PLAN)
    with pytest.raises(KilledError):
        harness.step(REGISTER, killed)


def test_the_record_names_the_release(harness: DeployHarness) -> None:
    assert post(harness) == Finish(JobStatus.SUCCEEDED, {"serve_application": 900})
    data = {
        "name": "digits@1.0.0",
        "plugin_code": "digits",
        "version": "1.0.0",
        "route_prefix": "/abc",
        "digest": "d1",
    }
    assert harness.backend.serve_applications == [{"id": 900, "job": 42, "status": "RUNNING", "data": data}]


@pytest.mark.parametrize(
    ("planned", "taken"),
    [({"requests_at_once": 15}, "15"), ({}, None), ({"requests_at_once": "many"}, None)],
    ids=["known", "unknown", "an author's own"],
)
def test_runs_learn_how_many_requests_it_takes(
    harness: DeployHarness, planned: dict[str, Any], taken: str | None
) -> None:
    # Given an application that took another number before
    key = taken_key(WaitlistName("", 1, "digits", "1.0.0"))
    harness.services.redis.set(key, 7)

    # When it is deployed
    harness.update_state(plan=replace(PLAN, other=planned))
    harness.step(REGISTER, lambda run: register(run, harness.services))

    # Then runs know the new one, or none
    assert harness.services.redis.get(key) == taken


def test_a_second_delivery_registers_nothing(harness: DeployHarness) -> None:
    post_and_die(harness)
    assert post(harness) == Finish(JobStatus.SUCCEEDED, {"serve_application": 900})
    assert len(harness.backend.serve_applications) == 1


@pytest.mark.parametrize("error", [ClientTimeoutError(), ClientConnectionError(), ServerError()])
def test_after_a_lost_answer_the_record_is_looked_for(harness: DeployHarness, error: Exception) -> None:
    harness.backend.serve_applications.append({"id": 5, "job": 41, "status": "RUNNING"})
    harness.backend.faults.lose_answer("create_serve_application", error)
    with pytest.raises(type(error)):
        post(harness)
    assert post(harness) == Finish(JobStatus.SUCCEEDED, {"serve_application": 901})
    assert len(harness.backend.serve_applications) == 2


def test_a_post_that_did_nothing_is_made_again(harness: DeployHarness) -> None:
    harness.backend.faults.fail("create_serve_application", ServerError())
    with pytest.raises(ServerError):
        post(harness)
    harness.backend.faults.recover("create_serve_application")
    assert post(harness) == Finish(JobStatus.SUCCEEDED, {"serve_application": 900})


def test_after_a_malformed_answer_the_record_is_looked_for(harness: DeployHarness) -> None:
    harness.backend.faults.lose_answer("create_serve_application", MalformedResponseError())
    assert isinstance(post(harness), Reschedule)
    assert post(harness) == Finish(JobStatus.SUCCEEDED, {"serve_application": 900})


@pytest.mark.parametrize("identifier", ["\ud800", "", "a\nb", "x" * 101, None, True, 1.5, [], float("nan")])
def test_what_is_no_id_is_a_malformed_answer(
    harness: DeployHarness, monkeypatch: pytest.MonkeyPatch, identifier: object
) -> None:
    # Given a backend whose record has an id that no result could carry
    monkeypatch.setattr(harness.backend, "create_serve_application", lambda **_: {"id": identifier})

    # When the application is registered, then the record is looked for, as after any answer that says nothing
    assert isinstance(post(harness), Reschedule)


def test_a_restored_older_redis_leads_to_no_second_record(harness: DeployHarness) -> None:
    # Given a record that was posted, and a Redis that has lost its last second with its machine
    redis, key = harness.runs.redis, run_key("42")
    harness.update_state(plan=PLAN)
    before = redis.hgetall(key)
    post(harness)
    redis.delete(key)
    redis.hset(key, mapping=before)

    # When the step's message, which is back as well, is delivered
    assert post(harness) == Finish(JobStatus.SUCCEEDED, {"serve_application": 900})

    # Then nothing is posted again
    assert len(harness.backend.serve_applications) == 1


def test_a_suspended_worker_that_lost_the_step_posts_nothing(
    harness: DeployHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that is suspended in the middle of the step until another has posted the record
    look = harness.backend.list_serve_applications

    def slow(**query: Any) -> dict[str, Any]:
        monkeypatch.setattr(harness.backend, "list_serve_applications", look)
        found = look(**query)
        harness.runs.redis.delete(lock_key("42", REGISTER.name))
        post_and_die(harness)
        return found

    monkeypatch.setattr(harness.backend, "list_serve_applications", slow)

    # When it goes on
    harness.update_state(post_attempts=1)
    assert isinstance(post(harness), Reschedule)

    # Then it posts nothing, and its retry finds that record
    assert len(harness.backend.serve_applications) == 1
    assert post(harness) == Finish(JobStatus.SUCCEEDED, {"serve_application": 900})


def test_answers_that_stay_malformed_end_the_run(harness: DeployHarness) -> None:
    harness.backend.faults.fail("create_serve_application", MalformedResponseError())
    for _ in range(4):
        assert isinstance(post(harness), Reschedule)
    assert isinstance(post(harness), Reschedule)
    with pytest.raises(MalformedResponseError):
        post(harness)


def test_a_malformed_list_is_an_unavailable_dependency(
    harness: DeployHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.backend.faults.lose_answer("create_serve_application", MalformedResponseError())
    assert isinstance(post(harness), Reschedule)

    def malformed(**_: object) -> dict[str, Any]:
        raise MalformedResponseError()

    monkeypatch.setattr(harness.backend, "list_serve_applications", malformed)
    with pytest.raises(MalformedResponseError):
        post(harness)
    assert len(harness.backend.serve_applications) == 1


def test_the_waiting_list_of_the_pre_processor_is_woken(
    harness: DeployHarness, sender: RecordingPublisher
) -> None:
    name = WaitlistName("", 1, "digits", "1.0.0")
    Waitlist(harness.runs.redis, name).join("7", 60)
    post(harness)
    woken = sender.of(AWAIT_READY.name)
    assert [(sent.kwargs["room"], sent.kwargs["generation"]) for sent in woken] == [(name.key, 2)]
    assert "running_at" in woken[0].kwargs


def test_only_the_delivery_that_posts_says_it_runs(
    harness: DeployHarness, sender: RecordingPublisher
) -> None:
    # Given a run that waits, and a worker that died after it had registered what the run waits for
    Waitlist(harness.runs.redis, WaitlistName("", 1, "digits", "1.0.0")).join("7", 60)
    post_and_die(harness)

    # When the step is delivered again, after however long
    post(harness)

    # Then the second poll asks the backend
    assert ["running_at" in sent.kwargs for sent in sender.of(AWAIT_READY.name)] == [True, False]
