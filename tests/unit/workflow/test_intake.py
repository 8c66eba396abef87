"""How a message becomes a run, and whether its job is still to be done."""

from dataclasses import replace
from typing import Any, NoReturn

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.channels import job_key
from shared.messages import ToTaskMessage
from tests.harness.in_process_worker import Delivery, RecordingPublisher
from tests.unit.runs.example_workflow import end_by_an_older_worker
from tests.unit.workflow.harness import (
    MESSAGE,
    Backend,
    FakeServices,
    TaskRunner,
    dead_letters,
    deliver_and_begin,
)
from worker.deploy.plan import DEPLOY
from worker.platform import NotFoundError
from worker.plugins import PluginHostUnavailableError
from worker.runs.keys import heartbeats_key
from worker.workflow.intake import begin_run


def test_accepted_message_sends_the_first_step(task_runner: TaskRunner, sender: RecordingPublisher) -> None:
    assert task_runner.deliver("test.deploy", **MESSAGE).ended == "acknowledged"

    assert [(sent.name, sent.queue, sent.kwargs) for sent in sender.published] == [
        ("deploy.initialize", "deploy", {"job": "42"})
    ]


@pytest.mark.parametrize(
    ("priority", "kept"), [(6, 6), (0, 0), (None, 0), (-1, 0), (1_000, 255), ("urgent", 0), (1.5, 0)]
)
def test_the_priority_of_a_message_is_that_of_its_run(
    task_runner: TaskRunner,
    services: FakeServices,
    sender: RecordingPublisher,
    priority: object,
    kept: int,
) -> None:
    task_runner.priority = priority

    task_runner.deliver("test.deploy", **MESSAGE)

    assert [sent.priority for sent in sender.published] == [kept]
    assert services.runs.store.load("42").priority == kept


def test_a_second_message_changes_no_priority(
    task_runner: TaskRunner, services: FakeServices, sender: RecordingPublisher
) -> None:
    for priority in (6, 3):
        task_runner.priority = priority
        task_runner.deliver("test.deploy", **MESSAGE)

    assert [sent.priority for sent in sender.published] == [6, 6]


@pytest.mark.parametrize(
    ("routing_key", "queue"),
    [
        ("deploy", "deploy"),
        ("deploy.3", "deploy.3"),
        ("deploy.x", "deploy"),
        ("jobs.deploy", "deploy"),
        ("to_task", "deploy"),
        (["x"], "deploy"),
        (None, "deploy"),
    ],
)
def test_steps_go_to_a_queue_that_workers_consume(
    task_runner: TaskRunner, sender: RecordingPublisher, routing_key: object, queue: str
) -> None:
    task_runner.routing_key = routing_key

    task_runner.deliver("test.deploy", **MESSAGE)

    assert [sent.queue for sent in sender.published] == [queue]


def test_a_message_that_breaks_its_acceptance_is_kept(
    task_runner: TaskRunner, services: FakeServices, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(services.runs.store, "accept", broken)

    assert task_runner.deliver("test.deploy", **MESSAGE).ended == "acknowledged"
    (letter,) = dead_letters(redis)
    assert letter["reason"] == "it could not be taken in (KeyError)"


def test_message_with_half_a_character_is_kept(task_runner: TaskRunner, redis: FakeRedis) -> None:
    task_runner.deliver("test.deploy", **MESSAGE, params={"x": {"\ud800": 1}})

    (letter,) = dead_letters(redis)
    assert "cannot be encoded" in letter["reason"]


def test_an_accepted_message_has_a_heartbeat(task_runner: TaskRunner, redis: FakeRedis) -> None:
    task_runner.deliver("test.deploy", **MESSAGE)

    assert redis.zrange(heartbeats_key(), 0, -1) == ["run:42"]


def test_a_redelivered_message_sends_the_unclaimed_first_step(
    task_runner: TaskRunner, sender: RecordingPublisher
) -> None:
    task_runner.deliver("test.deploy", **MESSAGE)
    task_runner.deliver("test.deploy", **MESSAGE)

    assert len(sender.of("deploy.initialize")) == 2


def test_a_redelivered_message_of_a_begun_run_starts_nothing(
    task_runner: TaskRunner, services: FakeServices, sender: RecordingPublisher
) -> None:
    from worker.runs.model import Step

    task_runner.deliver("test.deploy", **MESSAGE)
    services.runs.store.claim_step("42", Step("deploy.initialize", 10), "", "me", 5, 0, False)
    task_runner.deliver("test.deploy", **MESSAGE)

    assert len(sender.of("deploy.initialize")) == 1


def test_a_message_of_the_other_kind_starts_nothing(
    task_runner: TaskRunner, services: FakeServices, sender: RecordingPublisher
) -> None:
    # Given a run of `to_task` whose first step lies in the queue
    params = {"name": "n", "project": 1, "agent": 1, "target_specification_name": "label"}
    first = ToTaskMessage.model_validate({"job": 42, "plugin": "digits@1.0.0", "params": params})
    services.runs.store.accept(first, "to_task")

    # When a message of `deploy` names the same job
    task_runner.deliver("test.deploy", **MESSAGE)

    # Then no step of a deployment is sent for it
    assert sender.published == []
    assert services.runs.store.load("42").end is None


def test_a_message_of_an_ended_run_has_its_end_reported(
    task_runner: TaskRunner, services: FakeServices, sender: RecordingPublisher
) -> None:
    task_runner.deliver("test.deploy", **MESSAGE)
    end_by_an_older_worker(services.runs, "42")
    sender.published.clear()

    task_runner.deliver("test.deploy", **MESSAGE)

    assert (sender.published, services.reports_due) == ([], [("42", 0.0)])


def test_a_message_is_retried_while_redis_is_unavailable(
    task_runner: TaskRunner, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(services.runs.store, "accept", away)

    delivery = task_runner.deliver("test.deploy", **MESSAGE)

    assert (delivery.ended, delivery.kwargs) == ("retried", MESSAGE)


def test_a_message_is_requeued_when_nothing_can_be_published(
    task_runner: TaskRunner, sender: RecordingPublisher
) -> None:
    sender.broken = task_runner.broken = True

    assert task_runner.deliver("test.deploy", **MESSAGE).ended == "requeued"


@pytest.mark.parametrize(
    "error", [OSError("stale file handle"), MemoryError(), PluginHostUnavailableError("Ray is away")]
)
def test_a_message_is_retried_while_the_store_is_unreadable(
    task_runner: TaskRunner, services: FakeServices, error: Exception
) -> None:
    services.store.error = error

    assert task_runner.deliver("test.deploy", **MESSAGE).ended == "retried"


def test_a_store_unreadable_for_an_hour_rejects_the_message(
    task_runner: TaskRunner, services: FakeServices, redis: FakeRedis
) -> None:
    # Given a message that was retried often while Redis was away, which uses up nothing of the hour
    services.store.error = OSError("stale file handle")
    delivery = task_runner.deliver_all("test.deploy", MESSAGE, retries_before=500)
    waited = 0.0

    # When the store stays unreadable
    while delivery.countdown:
        waited += delivery.countdown
        delivery = task_runner.deliver_all(
            "test.deploy", MESSAGE, headers=delivery.headers, retries_before=500
        )

    # Then the message is rejected after an hour
    assert 3600 <= waited < 3700
    assert dead_letters(redis)[0]["reason"] == "the plugin store cannot be read (OSError)"


def test_a_message_whose_release_breaks_its_reader_is_rejected(
    task_runner: TaskRunner, services: FakeServices, redis: FakeRedis
) -> None:
    services.store.error = TypeError("a bug")

    assert task_runner.deliver("test.deploy", **MESSAGE).ended == "acknowledged"
    assert dead_letters(redis)[0]["reason"] == "TypeError: a bug"


def test_stop_that_came_first_ends_the_run_and_reports_it(
    task_runner: TaskRunner, sender: RecordingPublisher, services: FakeServices
) -> None:
    task_runner.deliver("stop", job=42)
    task_runner.deliver("test.deploy", **MESSAGE)

    assert services.runs.store.has_ended("42")
    assert (sender.published, services.reports_due) == ([], [("42", 0.0)])


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_a_job_that_has_ended_at_the_backend_starts_nothing(
    task_runner: TaskRunner, services: FakeServices, backend: Backend, sender: RecordingPublisher, status: str
) -> None:
    backend.status = status

    assert not deliver_and_begin(task_runner, services)
    assert services.reports_due == []
    assert services.redis.hget(job_key("42"), "status") == status
    assert services.redis.zcard(heartbeats_key()) == 0


def test_a_job_that_has_ended_starts_nothing_on_redelivery(
    task_runner: TaskRunner, services: FakeServices, backend: Backend
) -> None:
    backend.status = "STOPPED"
    task_runner.deliver("test.deploy", **MESSAGE)

    assert not begin_run(replace(DEPLOY.typed(services.runs.store.load("42")), is_retry=True), services)


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_job_that_has_not_ended_starts(
    task_runner: TaskRunner, services: FakeServices, backend: Backend, status: str
) -> None:
    backend.status = status

    assert deliver_and_begin(task_runner, services)
    assert services.redis.hget(job_key("42"), "status") == "RUNNING"


def test_job_that_the_backend_does_not_know_starts(
    task_runner: TaskRunner, services: FakeServices, backend: Backend
) -> None:
    backend.get_error = NotFoundError()

    assert deliver_and_begin(task_runner, services)


class Deaths:
    """Deliveries of one message, during which the release is read and the worker may die."""

    def __init__(
        self, task_runner: TaskRunner, services: FakeServices, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._task_runner, self._services, self._monkeypatch = task_runner, services, monkeypatch

    def deliver(self, *, dies: bool, headers: dict[str, Any] | None = None) -> Delivery:
        """A second or later delivery; a worker that dies gives nothing back."""
        with self._monkeypatch.context() as patches:
            if dies:
                patches.setattr(self._services.store, "get", lambda _: self._kill(patches))
            try:
                return self._task_runner.deliver_all(
                    "test.deploy", MESSAGE, message_id="m1", headers=headers, redelivered=headers is None
                )
            except KilledError:
                return Delivery("died")

    def _kill(self, patches: pytest.MonkeyPatch) -> NoReturn:
        patches.setattr(self._services.redis, "srem", lambda *_: None)
        raise KilledError

    def die(self) -> None:
        """A redelivery during which the worker dies; when it is delayed, the delivery after that."""
        delivery = self.deliver(dies=True)
        if delivery.ended == "retried":
            delivery = self.deliver(dies=True, headers=delivery.headers)
        assert delivery.ended == "died"


class KilledError(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def deaths(task_runner: TaskRunner, services: FakeServices, monkeypatch: pytest.MonkeyPatch) -> Deaths:
    return Deaths(task_runner, services, monkeypatch)


def test_a_message_that_kills_five_workers_is_rejected(
    deaths: Deaths, services: FakeServices, redis: FakeRedis
) -> None:
    # Given a message whose first delivery and four more died
    for _ in range(4):
        deaths.die()

    # When it comes again
    assert deaths.deliver(dies=False).ended == "acknowledged"

    # Then it is a dead letter with the reason, and no run
    (letter,) = dead_letters(redis)
    assert letter["reason"].startswith("5 workers died while it was read; see why they ended")
    assert not services.runs.store.exists("42")


def test_a_message_that_kills_four_workers_is_accepted(deaths: Deaths, services: FakeServices) -> None:
    for _ in range(3):
        deaths.die()
    delayed = deaths.deliver(dies=False)
    assert (delayed.ended, delayed.countdown is not None) == ("retried", True)

    assert deaths.deliver(dies=False, headers=delayed.headers).ended == "acknowledged"
    assert services.runs.store.exists("42")


def test_deliveries_that_end_count_as_no_death(deaths: Deaths, services: FakeServices) -> None:
    # Given a plugin store that is away during many deliveries
    services.store.error = PluginHostUnavailableError("away")
    for _ in range(10):
        assert deaths.deliver(dies=False).ended == "retried"
    services.store.error = None

    assert deaths.deliver(dies=False).ended == "acknowledged"
    assert services.runs.store.exists("42")


def test_a_message_that_comes_once_is_not_counted(task_runner: TaskRunner, redis: FakeRedis) -> None:
    task_runner.deliver("test.deploy", **MESSAGE)
    assert redis.keys("synapse:entry_deaths:*") == []
