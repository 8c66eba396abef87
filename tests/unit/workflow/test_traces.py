"""Traces of runs: one context from the message to the last step, one field in Redis, no secret in a span."""

from typing import Any

import pytest
from fakeredis import FakeRedis
from opentelemetry.trace import SpanKind, StatusCode

from shared.statuses import JobStatus
from tests.harness.in_process_worker import InProcessWorker
from tests.harness.recorded_spans import PARENT, RecordedSpans, context_of, parent_of
from tests.unit.runs.example_workflow import CHUNK, FIRST, SECOND, StepCalls, deliver
from tests.unit.workflow.harness import MESSAGE, FakeServices, TaskRunner
from worker import tracing
from worker.platform import RateLimitError, ServerError, register_secrets
from worker.runs import publisher
from worker.runs.generations import GenerationClaim
from worker.runs.keys import RunField, lock_key, run_key
from worker.runs.model import ClaimStatus, Continue, Finish, Outcome, Run
from worker.runs.runs import Runs
from worker.workflow.delivery import Retry

SECRET = "s3cret-of-the-backend"


def stored_context(redis: FakeRedis) -> str | None:
    return redis.hget(run_key("42"), RunField.TRACEPARENT)


@pytest.fixture
def traced_run(spans: RecordedSpans, run: Run, redis: FakeRedis) -> Run:
    """The run was accepted with its publisher's context."""
    redis.hset(run_key("42"), RunField.TRACEPARENT, PARENT)
    return run


def test_run_keeps_the_context_of_its_message(
    spans: RecordedSpans, task_runner: TaskRunner, services: FakeServices, redis: FakeRedis
) -> None:
    task_runner.deliver_all("test.deploy", MESSAGE, headers={"traceparent": PARENT})

    accepted = spans.only()
    assert (accepted.name, accepted.kind, parent_of(accepted)) == (
        "process test.deploy",
        SpanKind.CONSUMER,
        PARENT,
    )
    assert stored_context(redis) == services.runs.store.load("42").traceparent == PARENT


def test_message_without_a_context_begins_a_trace(
    spans: RecordedSpans, task_runner: TaskRunner, redis: FakeRedis
) -> None:
    task_runner.deliver_all("test.deploy", MESSAGE)

    accepted = spans.only()
    assert (parent_of(accepted), stored_context(redis)) == (None, context_of(accepted))


@pytest.mark.parametrize("header", ["00-zz-zz-01", "x" * 10_000, 7, {"a": 1}, None])
def test_context_that_is_none_is_not_kept(
    spans: RecordedSpans, task_runner: TaskRunner, redis: FakeRedis, header: Any
) -> None:
    task_runner.deliver_all("test.deploy", MESSAGE, headers={"traceparent": header})

    assert stored_context(redis) == context_of(spans.only())


def test_run_has_no_further_field_where_traces_are_off(task_runner: TaskRunner, redis: FakeRedis) -> None:
    task_runner.deliver_all("test.deploy", MESSAGE, headers={"traceparent": PARENT})

    assert sorted(redis.hgetall(run_key("42"))) == ["message", "position", "queue"]


def test_each_step_is_a_child_of_the_runs_context(
    spans: RecordedSpans, worker: InProcessWorker, traced_run: Run
) -> None:
    deliver(worker, FIRST)
    deliver(worker, SECOND)

    assert [parent_of(step) for step in spans.ended()] == [PARENT, PARENT]


def test_step_says_what_it_is_of_and_what_follows(
    spans: RecordedSpans, worker: InProcessWorker, traced_run: Run
) -> None:
    worker.run_step(FIRST, lambda _: Continue(SECOND))

    attributes = dict(spans.only().attributes or {})
    assert len(attributes.pop("messaging.message.id")) == 32
    assert attributes == {
        "messaging.system": "celery",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "deploy",
        "synapse.action": "deployment",
        "synapse.job": "42",
        "synapse.outcome": "continued",
        "synapse.plugin": "digits@1.0.0",
        "synapse.redelivered": False,
        "synapse.step": "harness.step",
    }


def test_step_of_a_dead_worker_goes_on_in_the_same_trace(
    spans: RecordedSpans, worker: InProcessWorker, traced_run: Run, runs: Runs, redis: FakeRedis
) -> None:
    # Given a step whose worker died, so that its span was never sent
    runs.store.claim_step("42", FIRST, "", "ofthedead", 30, 0, False)
    redis.delete(lock_key("42", FIRST.name))

    # When another worker gets a message that the sweep published, without any context
    calls = StepCalls()
    deliver(worker, FIRST, calls, redelivered=True)

    # Then its span is of the run's trace
    assert (calls[0].is_retry, parent_of(spans.only())) == (True, PARENT)


def test_chunk_is_named(spans: RecordedSpans, worker: InProcessWorker, traced_run: Run) -> None:
    deliver(worker, CHUNK, part="7")

    assert (spans.only().attributes or {})["synapse.chunk"] == "7"


def test_message_that_may_not_begin_has_no_span(
    spans: RecordedSpans, worker: InProcessWorker, traced_run: Run
) -> None:
    deliver(worker, SECOND)
    spans_before = len(spans.ended())

    deliver(worker, FIRST)  # a copy of a step that the run has passed

    assert len(spans.ended()) == spans_before


@pytest.mark.parametrize(
    "error", [ValueError(f"token={SECRET}"), RuntimeError(f"Authorization: Token {SECRET}")]
)
def test_failed_step_has_the_cleaned_error(
    spans: RecordedSpans, worker: InProcessWorker, traced_run: Run, error: Exception
) -> None:
    register_secrets([SECRET])

    def fail(_: Run) -> Outcome:
        raise error

    delivery = worker.run_step(FIRST, fail)

    step = spans.only()
    assert step.status.status_code is StatusCode.ERROR
    assert step.status.description == delivery.failure
    assert SECRET not in step.to_json()
    assert not step.events  # a trace of Python's may show values


def test_step_that_ends_its_run_failed_is_an_error(
    spans: RecordedSpans, worker: InProcessWorker, traced_run: Run
) -> None:
    worker.run_step(FIRST, lambda _: Finish(JobStatus.FAILED, {"error": "no room"}))

    assert spans.only().status.description == "no room"


def test_step_that_waits_for_a_service_names_it(
    spans: RecordedSpans, worker: InProcessWorker, traced_run: Run
) -> None:
    def ask(_: Run) -> Outcome:
        raise ServerError("503 Service Unavailable", 503)

    worker.run_step(FIRST, ask)

    step = spans.only()
    assert (step.attributes or {})["error.type"] == "ServerError"
    assert (step.attributes or {})["synapse.outcome"] == "retried"


def test_retried_message_carries_its_context_on(
    spans: RecordedSpans, worker: InProcessWorker, traced_run: Run
) -> None:
    def ask(_: Run) -> Outcome:
        raise RateLimitError("429 Too Many Requests", 429)

    # Given a message that came with a context
    delivery = worker.run_step(FIRST, ask, headers={"traceparent": PARENT})

    assert delivery.headers["traceparent"] == PARENT


def test_poll_without_a_context_stays_one_trace(spans: RecordedSpans, worker: InProcessWorker) -> None:
    # Given a poll of a waiting list that the sweep published, without a context
    claimed = GenerationClaim(ClaimStatus.CLAIMED, 0)

    # When it is to be repeated
    delivery = worker.run_poll(lambda *_: claimed, lambda *_: Retry(1.0), lock="x", kwargs={"generation": 0})

    # Then the next one is of the trace that this one has begun
    assert delivery.headers["traceparent"] == context_of(spans.only())


class SentTasks:
    """Celery's `send_task`, which keeps the headers."""

    def __init__(self) -> None:
        self.headers: list[Any] = []

    def send_task(self, *_: Any, headers: Any = None, **__: Any) -> None:
        self.headers.append(headers)


def test_message_of_a_step_carries_the_context_in_its_headers(spans: RecordedSpans) -> None:
    app: Any = SentTasks()
    with tracing.task_span("process step", PARENT, "42", {}):
        publisher.CeleryPublisher(app).publish(SECOND, "deploy", {"job": "42"})
        publisher.CeleryPublisher(app).publish(SECOND, "deploy", {"job": "43"})
    publisher.CeleryPublisher(app).publish(SECOND, "deploy", {"job": "42"})

    # That of another run, which this one wakes, has its own in Redis
    assert [headers.get("traceparent") for headers in app.headers] == [PARENT, None, None]
