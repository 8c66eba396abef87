"""The application's record in the backend."""

from typing import Any

import pytest

from shared.statuses import JobStatus
from tests.unit.deploy.deploy_helpers import STORED_PLAN, Yard
from tests.unit.runs.runs_helpers import RecordingSender
from worker.deploy.plan import REGISTER
from worker.deploy.register import register
from worker.platform import ClientConnectionError, ClientTimeoutError, MalformedResponseError, ServerError
from worker.pre_processor.waitlist import AWAIT_READY, Waitlist, WaitlistName
from worker.runs.keys import lock_key, run_key
from worker.runs.model import Finish, Outcome, Reschedule


def tell(yard: Yard) -> Outcome:
    yard.update_state(plan=STORED_PLAN)
    return yard.step(REGISTER, lambda run: register(run, yard.services))


def test_the_record_names_the_release(yard: Yard) -> None:
    assert tell(yard) == Finish(JobStatus.SUCCEEDED, {"serve_application": 900})
    data = {
        "name": "digits@1.0.0",
        "plugin_code": "digits",
        "version": "1.0.0",
        "route_prefix": "/abc",
        "digest": "d1",
    }
    assert yard.api.records == [{"id": 900, "job": 42, "status": "RUNNING", "data": data}]


def test_a_second_delivery_registers_nothing(yard: Yard) -> None:
    tell(yard)
    assert tell(yard) == Finish(JobStatus.SUCCEEDED, {"serve_application": 900})
    assert len(yard.api.records) == 1


@pytest.mark.parametrize("error", [ClientTimeoutError(), ClientConnectionError(), ServerError()])
def test_after_a_lost_answer_the_record_is_looked_for(yard: Yard, error: Exception) -> None:
    yard.api.records.append({"id": 5, "job": 41, "status": "RUNNING"})
    yard.api.lost = error
    with pytest.raises(type(error)):
        tell(yard)
    assert tell(yard) == Finish(JobStatus.SUCCEEDED, {"serve_application": 901})
    assert len(yard.api.records) == 2


def test_a_post_that_did_nothing_is_made_again(yard: Yard) -> None:
    yard.api.refused = ServerError()
    with pytest.raises(ServerError):
        tell(yard)
    yard.api.refused = None
    assert tell(yard) == Finish(JobStatus.SUCCEEDED, {"serve_application": 900})


def test_after_a_malformed_answer_the_record_is_looked_for(yard: Yard) -> None:
    yard.api.lost = MalformedResponseError()
    assert isinstance(tell(yard), Reschedule)
    assert tell(yard) == Finish(JobStatus.SUCCEEDED, {"serve_application": 900})


@pytest.mark.parametrize("identifier", ["\ud800", "", "a\nb", "x" * 101, None, True, 1.5, [], float("nan")])
def test_what_is_no_id_is_a_malformed_answer(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, identifier: object
) -> None:
    # Given a backend whose record has an id that no result could carry
    monkeypatch.setattr(yard.api, "create_serve_application", lambda **_: {"id": identifier})

    # When the application is registered, then the record is looked for, as after any answer that says nothing
    assert isinstance(tell(yard), Reschedule)


def test_a_redis_that_came_back_from_an_older_file_does_not_lead_to_a_second_record(yard: Yard) -> None:
    # Given a record that was posted, and a Redis that has lost its last second with its machine
    redis, key = yard.runs.redis, run_key("42")
    yard.update_state(plan=STORED_PLAN)
    before = redis.hgetall(key)
    tell(yard)
    redis.delete(key)
    redis.hset(key, mapping=before)

    # When the step's message, which is back as well, is delivered
    assert tell(yard) == Finish(JobStatus.SUCCEEDED, {"serve_application": 900})

    # Then nothing is posted again
    assert len(yard.api.records) == 1


def test_who_was_suspended_before_the_post_and_lost_the_step_to_another_posts_nothing(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that is suspended in the midst of the step, until another has posted the record
    look = yard.api.list_serve_applications

    def slow(**query: Any) -> dict[str, Any]:
        monkeypatch.setattr(yard.api, "list_serve_applications", look)
        found = look(**query)
        yard.runs.redis.delete(lock_key("42", REGISTER.name))
        assert isinstance(tell(yard), Finish)
        return found

    monkeypatch.setattr(yard.api, "list_serve_applications", slow)

    # When it goes on
    yard.update_state(post_attempts=1)
    assert isinstance(tell(yard), Reschedule)

    # Then it posts nothing, and finds that record when it comes back
    assert len(yard.api.records) == 1
    assert tell(yard) == Finish(JobStatus.SUCCEEDED, {"serve_application": 900})


def test_answers_that_stay_malformed_end_the_run(yard: Yard) -> None:
    yard.api.refused = MalformedResponseError()
    for _ in range(4):
        assert isinstance(tell(yard), Reschedule)
    assert isinstance(tell(yard), Reschedule)
    with pytest.raises(MalformedResponseError):
        tell(yard)


def test_a_list_that_stays_malformed_after_a_malformed_answer_is_waited_for_as_a_neighbour(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.api.lost = MalformedResponseError()
    assert isinstance(tell(yard), Reschedule)

    def malformed(**_: object) -> dict[str, Any]:
        raise MalformedResponseError()

    monkeypatch.setattr(yard.api, "list_serve_applications", malformed)
    with pytest.raises(MalformedResponseError):
        tell(yard)
    assert len(yard.api.records) == 1


def test_who_waits_for_the_pre_processor_is_woken(yard: Yard, sender: RecordingSender) -> None:
    name = WaitlistName("", 1, "digits", "1.0.0")
    Waitlist(yard.runs.redis, name).join("7", 60)
    tell(yard)
    woken = sender.of(AWAIT_READY.name)
    assert [sent.kwargs for sent in woken] == [{"room": name.key, "generation": 2}]
