"""The task of a waiting list's poll."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Retry
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.harness.in_process_worker import celery_request
from tests.unit.pre_processor.waitlist_harness import NAME, WaitlistHarness
from worker.pre_processor import tasks
from worker.runs.model import RunFailedError
from worker.runs.publisher import NEXT_STEP, STEP_HEADER
from worker.testing import FakeBackend


class Delivery:
    """Delivers polls; keeps the retries that they publish."""

    def __init__(self) -> None:
        self.retries: list[tuple[dict[str, Any], float]] = []
        self.headers: list[dict[str, Any]] = []
        self.failure = ""

    def poll(self, *, redelivered: bool = False, **kwargs: Any) -> None:
        task = tasks.await_ready
        with celery_request(task, kwargs, routing_key="to_task", redelivered=redelivered):
            try:
                task.run(**kwargs)
            except Retry:
                assert self.retries
            except RunFailedError as failure:
                self.failure = str(failure)


@pytest.fixture
def delivery(harness: WaitlistHarness, monkeypatch: pytest.MonkeyPatch) -> Iterator[Delivery]:
    delivery = Delivery()
    app = Celery("test", broker="memory://", set_as_current=False)
    monkeypatch.setattr("celery._state._tls.current_app", app)
    monkeypatch.setattr(tasks, "services", lambda: harness.services)
    monkeypatch.setattr("worker.workflow.task.services", lambda: harness.services)

    def publish(args: object = None, kwargs: Any = None, **options: Any) -> None:
        delivery.retries.append((kwargs, options["countdown"]))
        delivery.headers.append(options["headers"])

    monkeypatch.setattr(tasks.await_ready.__class__, "apply_async", staticmethod(publish))
    return delivery


def test_a_poll_is_retried_as_the_next_generation(harness: WaitlistHarness, delivery: Delivery) -> None:
    harness.wait("1")
    delivery.poll(room=NAME.key, generation=1)
    [(kwargs, countdown)] = delivery.retries
    assert kwargs == {"room": NAME.key, "generation": 2, "attempt": 1, "redelivered": False}
    assert 0 < countdown <= 1


def test_the_last_poll_is_not_retried(
    harness: WaitlistHarness, delivery: Delivery, backend: FakeBackend
) -> None:
    harness.wait("1")
    backend.add_application()
    delivery.poll(room=NAME.key, generation=1)
    assert delivery.retries == []


def test_a_poll_that_resumes_more_runs_goes_before_them(
    harness: WaitlistHarness, delivery: Delivery, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a poll that waits, and then one that resumes less than all runs within its time
    harness.wait("1", "2")
    delivery.poll(room=NAME.key, generation=1)
    backend.add_application()
    monkeypatch.setattr("worker.pre_processor.poll.BATCH_WAITERS", 1)
    monkeypatch.setattr("worker.pre_processor.poll.MAX_POLL_SECONDS", 0)
    delivery.poll(room=NAME.key, generation=2)

    # Then that goes on at once, before the steps of the runs that it has resumed
    assert [countdown for _, countdown in delivery.retries] == [0.5, 0]
    assert [headers.get(STEP_HEADER) for headers in delivery.headers] == [None, NEXT_STEP]


@pytest.mark.parametrize(("age", "resumed"), [(1, ["1"]), (60, [])], ids=["woken", "delayed"])
def test_a_poll_believes_a_deployment_for_seconds(
    harness: WaitlistHarness, delivery: Delivery, age: float, resumed: list[str]
) -> None:
    # Given a run that waits, and a backend that shows no running application
    harness.wait("1")

    # When a poll is read so long after a deployment has said that it runs
    delivery.poll(room=NAME.key, generation=1, running_at=harness.waitlist.now() - age)

    # Then only one that was not delayed resumes the run without asking
    assert harness.resumed() == resumed


def test_a_poll_without_redis_is_retried_as_redelivered(
    harness: WaitlistHarness, delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poll(*args: Any, **kwargs: Any) -> None:
        raise RedisConnectionError("away")

    harness.wait("1")
    monkeypatch.setattr("worker.pre_processor.poll.await_ready", poll)
    delivery.poll(room=NAME.key, generation=1)
    [(kwargs, countdown)] = delivery.retries
    assert (kwargs["generation"], kwargs["redelivered"], countdown) == (1, True, 1.0)


def test_a_redelivered_poll_publishes_the_next_one(harness: WaitlistHarness, delivery: Delivery) -> None:
    harness.wait("1")
    harness.poll(1)  # its retry never reached the broker
    delivery.poll(room=NAME.key, generation=1, redelivered=True)
    [(kwargs, _)] = delivery.retries
    assert kwargs["generation"] == 2


def test_a_poll_that_fails_runs_fails_itself(
    harness: WaitlistHarness, delivery: Delivery, backend: FakeBackend
) -> None:
    # Given runs whose pre-processor's deployment fails
    harness.wait("1", "2")
    backend.jobs["101"] = "FAILED"

    # When that is seen
    delivery.poll(room=NAME.key, generation=1)

    # Then monitors are shown which runs have failed, and why
    assert delivery.failure == f"{harness.error('1')} (job 1, 2)"
    assert delivery.retries == []


def test_a_poll_that_fails_one_run_goes_on_for_the_others(
    harness: WaitlistHarness, delivery: Delivery, redis: Any
) -> None:
    # Given two runs that wait, one of them for too long
    harness.wait("1", "2")
    redis.zadd(harness.waitlist._waiters, {"1": 1.0})

    delivery.poll(room=NAME.key, generation=1)

    # Then the failure is shown, and the next poll is published
    assert delivery.failure == "Pre-processor did not become ready within timeout (job 1)"
    assert [kwargs["generation"] for kwargs, _ in delivery.retries] == [2]
    assert harness.waiting() == ["2"]
