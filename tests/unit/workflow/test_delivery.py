"""How long a message is delivered again: workers that die, runs that cannot be read, a Redis that rejects."""

import json
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from shared.channels import job_key
from shared.statuses import JobStatus
from tests.harness.in_process_worker import Delivery, InProcessWorker
from tests.unit.runs.example_workflow import CHUNK, FIRST, SECOND, StepCalls, deliver
from tests.unit.workflow.harness import MESSAGE, FakeServices, TaskRunner, dead_letters
from worker.runs.keys import deliveries_field, lock_key, polls_key, run_key
from worker.runs.model import Continue, Reschedule, Run, Step, Suspend
from worker.runs.runs import Runs
from worker.to_task.discover import Page, PageCommit, TaskIndex
from worker.to_task.ledger import RedisLedger, TaskOutcome
from worker.workflow.deaths import MAX_DEATHS
from worker.workflow.delivery import SEPARATED_HEADER
from worker.workflow.task import StepTask

GENERATION = {"job": "42", "generation": 0}


def die(runs: Runs, step: Step, *, times: int = 1, part: str = "", generation: int = 0) -> None:
    """As often, a worker claims the step and is killed, and its lock expires."""
    lock = lock_key("42", f"{step.name}:{part}" if part else step.name)
    for _ in range(times):
        runs.redis.delete(lock)
        runs.store.claim_step("42", step, part, runs.locks.new_token(), 30, generation, True)
    runs.redis.delete(lock)


def deliver_apart(worker: InProcessWorker, step: Step, calls: StepCalls, **options: Any) -> Delivery:
    """Deliver, and once more when the step is delayed to keep it apart from others."""
    delivery = deliver(worker, step, calls, redelivered=True, **options)
    if SEPARATED_HEADER in delivery.headers:
        delivery = deliver(worker, step, calls, kwargs=delivery.kwargs, headers=delivery.headers, **options)
    return delivery


def deaths(redis: FakeRedis, step: Step, part: str = "") -> str | None:
    return redis.hget(polls_key("42"), deliveries_field(f"{step.name}:{part}" if part else step.name))


@pytest.mark.parametrize("part", ["", "7"])
def test_step_that_killed_five_workers_is_not_called_again(
    worker: InProcessWorker, runs: Runs, run: Run, part: str
) -> None:
    step = CHUNK if part else FIRST
    die(runs, step, times=MAX_DEATHS, part=part)
    calls = StepCalls()

    deliver_apart(worker, step, calls, part=part)

    end = runs.store.load("42").end
    assert end is not None
    assert (calls, end.status) == ([], JobStatus.FAILED)
    assert end.error.startswith(
        f"5 workers died during {step.name}{':7' if part else ''}; see why they ended"
    )


def test_step_that_killed_four_workers_is_tried_again(
    worker: InProcessWorker, runs: Runs, run: Run, redis: FakeRedis
) -> None:
    die(runs, FIRST, times=MAX_DEATHS - 1)
    calls = StepCalls(Continue(SECOND))

    deliver_apart(worker, FIRST, calls)

    assert len(calls) == 1
    assert runs.store.load("42").end is None


def test_step_of_two_dead_workers_is_delayed_once(worker: InProcessWorker, runs: Runs, run: Run) -> None:
    # Given a step that was in two workers when they died
    die(runs, FIRST, times=2)
    calls = StepCalls()

    # When it is delivered again, it is kept apart from what else was in them
    delayed = deliver(worker, FIRST, calls, redelivered=True)
    assert (delayed.ended, calls) == ("retried", [])
    assert delayed.countdown is not None
    assert 0 <= delayed.countdown <= runs.timing.max_countdown

    # Then it is tried, and delayed again only after another death
    die(runs, FIRST)
    delayed = deliver(worker, FIRST, calls, kwargs=delayed.kwargs, headers=delayed.headers)
    assert (delayed.ended, delayed.headers[SEPARATED_HEADER]) == ("retried", 3)
    delivery = deliver(worker, FIRST, calls, kwargs=delayed.kwargs, headers=delayed.headers)
    assert delivery.ended == "acknowledged"
    assert len(calls) == 1


@pytest.mark.parametrize("outcome", [Suspend(), Continue(SECOND), Reschedule(1.0), RuntimeError("no")])
def test_delivery_that_ends_leaves_nothing_behind(
    worker: InProcessWorker, run: Run, redis: FakeRedis, outcome: object
) -> None:
    deliver(worker, FIRST, StepCalls(outcome))  # type: ignore[arg-type]

    assert deaths(redis, FIRST) is None


def test_delivery_that_is_locked_out_does_not_count(
    worker: InProcessWorker, runs: Runs, run: Run, redis: FakeRedis
) -> None:
    runs.store.claim_step("42", FIRST, "", "holder", 30, 0, False)
    for _ in range(MAX_DEATHS):
        assert deliver(worker, FIRST, StepCalls(), redelivered=True).ended == "retried"

    assert deaths(redis, FIRST) == "0 holder"


def test_poll_of_the_next_generation_begins_with_no_deaths(
    worker: InProcessWorker, runs: Runs, run: Run
) -> None:
    die(runs, FIRST, times=MAX_DEATHS - 1)
    second = deliver_apart(worker, FIRST, StepCalls(Reschedule(1.0)))
    die(runs, FIRST, times=1, generation=1)
    calls = StepCalls()

    deliver(worker, FIRST, calls, kwargs=second.kwargs)

    assert len(calls) == 1


def test_suspended_delivery_does_not_count_once_it_ends(
    worker: InProcessWorker, runs: Runs, run: Run, redis: FakeRedis
) -> None:
    def overtaken(_: Run) -> Suspend:
        redis.set(lock_key("42", FIRST.name), "another")
        return Suspend()

    deliver(worker, FIRST, overtaken)

    assert deaths(redis, FIRST) is None


@pytest.mark.parametrize("lost", ["the release", "the answer of the claim"])
def test_delivery_that_ends_while_redis_is_away_does_not_count(
    worker: InProcessWorker,
    runs: Runs,
    run: Run,
    redis: FakeRedis,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
) -> None:
    # Given a Redis that goes away during each of many deliveries
    run_script, claim_step = runs.locks._scripts.run, runs.store.claim_step
    calls = StepCalls()

    def failing_release(name: str, *arguments: object) -> object:
        raise RedisConnectionError

    def lost_claim(*arguments: object) -> object:
        claim_step(*arguments)  # type: ignore[arg-type]
        raise RedisConnectionError

    for _ in range(MAX_DEATHS + 1):
        with monkeypatch.context() as away:
            if lost == "the release":
                away.setattr(runs.locks._scripts, "run", failing_release)
            else:
                away.setattr(runs.store, "claim_step", lost_claim)
            deliver(worker, FIRST, StepCalls(), redelivered=True)
        redis.delete(lock_key("42", FIRST.name))
        assert runs.locks._scripts.run == run_script

    # When it is there again, the step is tried
    deliver(worker, FIRST, calls, redelivered=True)

    assert len(calls) == 1
    assert deaths(redis, FIRST) is None


def test_claim_that_is_repeated_with_its_token_counts_once(runs: Runs, run: Run, redis: FakeRedis) -> None:
    for _ in range(3):
        assert runs.store.claim_step("42", FIRST, "", "token", 30, 0, False).died == 0

    assert deaths(redis, FIRST) == "0 token"


def test_recorded_task_forgets_the_deaths_of_its_chunk(runs: Runs, run: Run, redis: FakeRedis) -> None:
    # Given two chunks that died
    die(runs, CHUNK, times=3, part="7")
    die(runs, CHUNK, times=3, part="8")
    claim = runs.store.claim_step("42", CHUNK, "7", "token", 30, 0, True)
    assert claim.run is not None
    ledger = RedisLedger(redis, "42", claim.run.lease)

    # When a task of the first is recorded
    ledger.record([TaskOutcome(0, 100)])

    # Then only its deaths are forgotten, and a task that was recorded before forgets none
    assert deaths(redis, CHUNK, "7") is None
    assert str(deaths(redis, CHUNK, "8")).count(" ") == 3
    die(runs, CHUNK, part="7")
    ledger.record([TaskOutcome(0, 100)])
    assert deaths(redis, CHUNK, "7") is not None


def test_committed_page_forgets_the_deaths_of_its_step(runs: Runs, run: Run, redis: FakeRedis) -> None:
    die(runs, FIRST, times=3)
    claim = runs.store.claim_step("42", FIRST, "", "token", 30, 0, True)
    assert claim.run is not None

    committed = TaskIndex(redis, "42", 10, claim.run.lease).commit(
        0, Page([1, 2], "http://backend/?page=1", 9)
    )

    assert committed is PageCommit.COMMITTED
    assert deaths(redis, FIRST) is None


@pytest.fixture
def step_runner(task_runner: TaskRunner) -> TaskRunner:
    """A runner that knows the step `deploy.first`."""

    def first(self: StepTask, job: str, **_: object) -> None:
        self.run_step(FIRST, job, StepCalls())

    task_runner._app.task(base=StepTask, bind=True, name=FIRST.name, shared=False)(first)
    task_runner.deliver("test.deploy", **MESSAGE)
    return task_runner


def make_newer(redis: FakeRedis) -> None:
    stored = json.loads(redis.hget(run_key("42"), "message"))
    stored["kwargs"]["dry_run"] = True
    redis.hset(run_key("42"), "message", json.dumps(stored))


def ends(redis: FakeRedis) -> tuple[str, str]:
    status, error = redis.hmget(job_key("42"), ["status", "error"])
    return status, error


def test_step_of_a_newer_run_waits_for_a_newer_worker_for_a_day(
    step_runner: TaskRunner, redis: FakeRedis
) -> None:
    make_newer(redis)

    # When it has waited for less than a day, then it waits on
    headers = {"synapse_newer_seconds": 86_399.0, "synapse_waited_seconds": 7.0}
    delivery = step_runner.deliver_all(FIRST.name, GENERATION, headers=headers)
    assert (delivery.ended, delivery.countdown) == ("retried", 5.0)
    assert delivery.headers == {"synapse_newer_seconds": 86_404.0, "synapse_waited_seconds": 7.0}
    assert dead_letters(redis) == []

    # And when it has waited for a day, it is a dead letter, and the run ends
    assert step_runner.deliver_all(FIRST.name, GENERATION, headers=delivery.headers).ended == "acknowledged"
    [letter] = dead_letters(redis)
    assert (letter["task"], letter["reason"]) == (FIRST.name, "the run of job 42 is of a newer release")
    assert ends(redis) == ("FAILED", "the run of job 42 is of a newer release")


@pytest.mark.parametrize("damaged", ["rubbish", b"\xff"], ids=repr)
def test_step_of_a_damaged_run_ends_it_at_once(
    step_runner: TaskRunner, redis: FakeRedis, damaged: str | bytes
) -> None:
    redis.hset(run_key("42"), "message", damaged)

    assert step_runner.deliver_all(FIRST.name, GENERATION).ended == "acknowledged"

    assert [letter["reason"] for letter in dead_letters(redis)] == ["the record of job 42's run is damaged"]
    assert ends(redis) == ("FAILED", "the record of job 42's run is damaged")
    assert not redis.exists(lock_key("42", FIRST.name))


def test_second_message_of_a_newer_run_never_ends_it(step_runner: TaskRunner, redis: FakeRedis) -> None:
    make_newer(redis)

    step_runner.deliver_all("test.deploy", MESSAGE, headers={"synapse_newer_seconds": 90_000.0})

    assert len(dead_letters(redis)) == 1
    assert ends(redis) == ("PENDING", "")


REJECTED = NoPermissionError("User w has no permissions to run the 'evalsha' command")


def test_command_that_redis_rejects_is_retried_for_an_hour(
    worker: InProcessWorker, runs: Runs, run: Run, redis: FakeRedis
) -> None:
    # Given a step that needs a command for which the worker has no right
    headers: dict[str, float] = {}
    countdowns: list[float] = []
    while not runs.store.has_ended("42"):
        delivery = deliver(worker, FIRST, StepCalls(REJECTED), redelivered=True, headers=headers)
        headers = delivery.headers
        countdowns.append(delivery.countdown or 0.0)

    # Then its countdowns grow, and the run ends after an hour of them
    assert countdowns[:4] == [1.0, 1.0, 1.0, 1.5]
    assert max(countdowns) == runs.timing.max_countdown
    assert 3_600 <= sum(countdowns) < 3_700
    assert ends(redis) == (
        "FAILED",
        "Redis has rejected a command for an hour: NoPermissionError: User w has no permissions to run the "
        "'evalsha' command",
    )


@pytest.mark.parametrize("error", [RedisConnectionError("away"), ResponseError("BUSY Redis is busy")])
def test_outage_is_retried_each_second_without_end(
    worker: InProcessWorker, runs: Runs, run: Run, error: Exception
) -> None:
    headers = {"synapse_waited_seconds": 4_000.0}

    delivery = deliver(worker, FIRST, StepCalls(error), headers=headers)

    assert (delivery.ended, delivery.countdown, delivery.headers) == ("retried", 1.0, headers)


def test_message_of_a_run_that_cannot_be_ended_is_a_dead_letter(
    step_runner: TaskRunner, redis: FakeRedis
) -> None:
    redis.delete(run_key("42"))
    redis.set(run_key("42"), "rubbish")

    delivery = step_runner.deliver_all(FIRST.name, GENERATION, headers={"synapse_waited_seconds": 3_600.0})

    assert delivery.ended == "acknowledged"
    assert [letter["task"] for letter in dead_letters(redis)] == [FIRST.name]


@pytest.mark.parametrize("task", ["stop", "test.deploy"])
def test_message_rejected_by_redis_for_an_hour_is_a_dead_letter(
    task_runner: TaskRunner,
    services: FakeServices,
    redis: FakeRedis,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
) -> None:
    def rejected(*_: object) -> None:
        raise REJECTED

    monkeypatch.setattr(services.runs.store, "remember_stop", rejected)
    monkeypatch.setattr(services.runs.store, "accept", rejected)
    message = MESSAGE if task == "test.deploy" else {"job": 42}

    first = task_runner.deliver_all(task, message)
    assert (first.ended, first.countdown) == ("retried", 1.0)
    last = task_runner.deliver_all(task, message, headers={"synapse_waited_seconds": 3_600.0})

    assert last.ended == "acknowledged"
    [letter] = dead_letters(redis)
    assert letter["reason"].startswith("Redis has rejected a command for an hour")
