"""The public record says when each step of a run began, also once the run has ended."""

import pytest
from fakeredis import FakeRedis

from shared.channels import job_key
from shared.statuses import JobStatus
from tests.unit.conftest import Clock
from tests.unit.runs.example_workflow import CHUNK, FIRST, SECOND
from worker.runs.keys import RunField, run_key
from worker.runs.model import BegunStep, End, Run, Step, begun_steps
from worker.runs.runs import Runs
from worker.workflow.ended_runs import EndedRuns


def begin(runs: Runs, step: Step, part: str = "", token: str = "token") -> None:
    """A delivery of the step begins and ends."""
    claim = runs.store.claim_step("42", step, part, token, 30, 0, False)
    assert claim.run is not None
    assert claim.run.lease is not None
    runs.locks.release(claim.run.lease)


def begin_by_an_older_worker(redis: FakeRedis, step: Step) -> None:
    """A worker of the release before moves the run on to the step."""
    redis.hset(run_key("42"), mapping={RunField.POSITION: step.position, RunField.STEP: step.name})
    redis.hset(job_key("42"), "step", step.name)


def steps_of(redis: FakeRedis) -> list[BegunStep]:
    return begun_steps(redis.hgetall(job_key("42")))


def test_each_step_has_the_time_at_which_it_began(
    runs: Runs, run: Run, redis: FakeRedis, clock: Clock
) -> None:
    # When a run begins a step, and a minute later the next one
    before = clock.time()
    begin(runs, FIRST)
    clock.forward(60)
    begin(runs, SECOND)

    # Then both are there with their times
    first, second = steps_of(redis)
    assert (first.name, second.name) == (FIRST.name, SECOND.name)
    assert first.since == pytest.approx(before, abs=30)
    assert second.since == pytest.approx(first.since + 60, abs=30)


def test_step_that_repeats_keeps_its_time(runs: Runs, run: Run, redis: FakeRedis, clock: Clock) -> None:
    # Given a step that has begun
    begin(runs, FIRST)
    record = redis.hgetall(job_key("42"))

    # When it is delivered again and again, then nothing more is kept of it
    for number in range(3):
        clock.forward(60)
        begin(runs, FIRST, token=f"token{number}")
    assert redis.hgetall(job_key("42")) == record | {"updated": redis.hget(job_key("42"), "updated")}


def test_chunks_are_no_steps_of_the_time_line(runs: Runs, run: Run, redis: FakeRedis) -> None:
    begin(runs, FIRST)

    for number in range(3):
        begin(runs, CHUNK, part=str(number))

    assert [step.name for step in steps_of(redis)] == [FIRST.name]


def test_step_of_an_older_worker_has_no_time(runs: Runs, run: Run, redis: FakeRedis) -> None:
    # Given a run whose first step a worker of the release before has begun
    begin_by_an_older_worker(redis, FIRST)
    assert steps_of(redis) == []

    # When the next one begins, then the first one stands before it, without a time
    begin(runs, SECOND)
    first, second = steps_of(redis)
    assert first == BegunStep(FIRST.name, None)
    assert (second.name, second.since is None) == (SECOND.name, False)


def test_present_step_of_an_older_worker_comes_last(runs: Runs, run: Run, redis: FakeRedis) -> None:
    begin(runs, FIRST)

    begin_by_an_older_worker(redis, SECOND)

    assert steps_of(redis)[1:] == [BegunStep(SECOND.name, None)]


def test_steps_of_an_ended_run_outlive_its_keys(runs: Runs, run: Run, redis: FakeRedis) -> None:
    # Given a run with two steps that has ended
    begin(runs, FIRST)
    begin(runs, SECOND)
    steps = steps_of(redis)
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))

    # When its own keys expire
    redis.delete(*redis.keys("synapse:jobs:*"))

    # Then what is kept of it has them
    ended = EndedRuns(redis).get("42")
    assert ended is not None
    assert begun_steps(ended.record) == steps


def test_damaged_times_hide_no_others() -> None:
    record = {"started": "100", "@a": "1500", "@b": "soon", "@c": "nan", "@d": ""}

    assert begun_steps(record) == [BegunStep("a", 101.5)]
