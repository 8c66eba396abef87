"""What steps leave for each other: typed, stored field by field, readable by other versions."""

import json
from dataclasses import dataclass, replace

import pytest
from fakeredis import FakeRedis

from shared.messages import ToTaskMessage
from shared.statuses import JobStatus
from tests.harness.in_process_worker import InProcessWorker
from tests.unit.runs.example_workflow import DEPLOY, FIRST, SECOND, FoundState, StepCalls, deliver
from worker.platform import register_secrets
from worker.runs.keys import run_key
from worker.runs.model import (
    End,
    Run,
    RunFailedError,
    Workflow,
)
from worker.runs.runs import Runs
from worker.runs.state import RunState, stored_field


@dataclass(frozen=True)
class Place:
    name: str


@dataclass(frozen=True)
class PlaceState(RunState):
    place: Place | None = stored_field(
        "place", None, decode=lambda stored: Place(stored["name"]), encode=lambda place: {"name": place.name}
    )


def test_state_of_a_new_run_has_the_defaults(runs: Runs, run: Run) -> None:
    assert DEPLOY.typed(run).state == FoundState()


def test_field_is_stored_as_json_under_its_stored_name(runs: Runs, run: Run, redis: FakeRedis) -> None:
    typed = DEPLOY.typed(run)

    runs.store.update_state(typed, replace(typed.state, tries=2))

    assert redis.hget(run_key("42"), "finding:attempts") == "2"


@pytest.mark.parametrize("text", ["손글씨 숫자 분류기", 'é\0"\\\x7f', "half a pair \ud83d", "한 \udc80"])
def test_text_is_stored_as_short_as_it_can_be_and_read_again(
    runs: Runs, run: Run, redis: FakeRedis, text: str
) -> None:
    typed = DEPLOY.typed(run)

    runs.store.update_state(typed, replace(typed.state, application={"name": text}))

    stored = redis.hget(run_key("42"), "finding:application")
    assert DEPLOY.typed(runs.store.load("42")).state.application == {"name": text}
    assert len(stored.encode()) <= len(json.dumps({"name": text}))
    assert ("손글씨" in stored) == ("손글씨" in text)


def test_only_fields_that_changed_are_written(runs: Runs, run: Run) -> None:
    before = DEPLOY.typed(run)
    runs.store.update_state(before, replace(before.state, application={"id": 7}))

    # A function that read the state earlier changes another field.
    runs.store.update_state(before, replace(before.state, tries=1))

    assert DEPLOY.typed(runs.store.load("42")).state == FoundState({"id": 7}, 1)


def test_field_is_taken_back_to_none(runs: Runs, run: Run) -> None:
    typed = DEPLOY.typed(run)
    runs.store.update_state(typed, replace(typed.state, application={"id": 7}))
    typed = DEPLOY.typed(runs.store.load("42"))

    runs.store.update_state(typed, replace(typed.state, application=None))

    assert DEPLOY.typed(runs.store.load("42")).state == FoundState()


def test_value_that_is_no_json_has_a_form_of_its_own(runs: Runs, run: Run, redis: FakeRedis) -> None:
    places = Workflow(DEPLOY.message, PlaceState)
    typed = places.typed(run)

    runs.store.update_state(typed, replace(typed.state, place=Place("here")))

    assert redis.hget(run_key("42"), "finding:place") == '{"name":"here"}'
    assert places.typed(runs.store.load("42")).state.place == Place("here")


def test_field_of_a_newer_worker_is_ignored(runs: Runs, run: Run, redis: FakeRedis) -> None:
    redis.hset(run_key("42"), "finding:unheard_of", "[1]")

    assert DEPLOY.typed(runs.store.load("42")).state == FoundState()


def test_secret_is_not_stored(runs: Runs, run: Run, redis: FakeRedis) -> None:
    register_secrets(["a-secret-of-the-backend"])
    places = Workflow(DEPLOY.message, PlaceState)
    typed = places.typed(run)

    runs.store.update_state(typed, replace(typed.state, place=Place("a-secret-of-the-backend")))

    assert "a-secret-of-the-backend" not in (redis.hget(run_key("42"), "finding:place") or "")


def test_run_of_another_workflow_is_rejected(runs: Runs, run: Run) -> None:
    with pytest.raises(RunFailedError, match="job 42 is a run of deploy"):
        Workflow(ToTaskMessage, FoundState).typed(run)


def test_state_is_there_for_later_steps(worker: InProcessWorker, run: Run, runs: Runs) -> None:
    before = DEPLOY.typed(runs.store.load("42"))
    runs.store.update_state(before, replace(before.state, application={"id": 7}))
    calls = StepCalls()

    deliver(worker, SECOND, calls)

    assert calls[0].state == FoundState(application={"id": 7})


def test_step_of_another_workflow_fails_the_run(
    worker: InProcessWorker, runs: Runs, to_task: ToTaskMessage
) -> None:
    runs.store.accept(to_task, "to_task")
    calls = StepCalls()

    deliver(worker, FIRST, calls)

    assert calls == []
    end = runs.store.load("42").end
    assert end == End(JobStatus.FAILED, {"error": "job 42 is a run of to_task, which has no such step"})
