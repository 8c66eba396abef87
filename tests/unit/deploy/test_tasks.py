"""The entry task and the steps: which agent's workers run them, and what happens after a stop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Retry
from fakeredis import FakeRedis
from kombu.exceptions import OperationalError

from tests.harness.in_process_worker import RecordingPublisher, celery_request
from tests.harness.pool_threads import NewThread
from tests.unit.deploy.deploy_harness import APP, DEPLOYING, PLAN, DeployHarness
from worker.deploy import tasks
from worker.deploy.deployments import Ownership
from worker.deploy.plan import AWAIT_RUNNING, INITIALIZE, SERVE_RUN
from worker.runs.bulkhead import Bulkhead, release_share
from worker.runs.model import Suspend
from worker.runs.reports.reporter import stop

MESSAGE = {"job": 42, "plugin": APP, "agent": 2}


class Delivery:
    """Calls tasks as if a message was delivered; keeps what they publish."""

    def __init__(self, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
        self.published: list[tuple[str, dict[str, Any]]] = []
        self._app, self._patch = app, monkeypatch
        monkeypatch.setattr(app, "send_task", self._send)
        self.broken: Exception | None = None

    def _send(self, name: str, **options: Any) -> None:
        if self.broken is not None:
            raise self.broken
        self.published.append((name, options))

    @contextmanager
    def request(self, task: Any, kwargs: dict[str, Any], *, redelivered: bool = False) -> Iterator[None]:
        self._patch.setattr(task.__class__, "apply_async", lambda *args, **kwargs: None)
        with celery_request(task, kwargs, redelivered=redelivered):
            yield


@pytest.fixture
def worker_of(
    redis: FakeRedis, sender: RecordingPublisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int | None], DeployHarness]:
    """Workers that serve an agent."""

    def of(agent: int | None) -> DeployHarness:
        harness = DeployHarness(redis, sender, tmp_path, worker_agent=agent)
        monkeypatch.setattr(tasks, "services", lambda: harness.services)
        for module in ("task", "agent_task"):
            monkeypatch.setattr(f"worker.workflow.{module}.services", lambda: harness.services)
        monkeypatch.setattr(tasks, "_cluster", lambda: harness.serve)
        return harness

    return of


@pytest.fixture
def delivery(monkeypatch: pytest.MonkeyPatch) -> Delivery:
    app = Celery("test", broker="memory://", set_as_current=False)
    monkeypatch.setattr("celery._state._tls.current_app", app)
    return Delivery(app, monkeypatch)


def test_a_message_for_another_agent_is_forwarded_unchanged(
    worker_of: Callable[[int | None], DeployHarness], delivery: Delivery
) -> None:
    harness = worker_of(1)
    with delivery.request(tasks.deploy, MESSAGE):
        tasks.deploy.run(**MESSAGE)
    [(name, options)] = delivery.published
    assert (name, options["kwargs"], options["queue"]) == ("deploy", MESSAGE, "deploy.2")
    assert "agent" not in options["kwargsrepr"]
    assert not harness.runs.store.exists("42")


@pytest.mark.parametrize(
    "error",
    [OperationalError("the broker is away"), AttributeError("'NoneType' object has no attribute 'client'")],
    ids=["broker away", "connection broken under another thread's hands"],
)
def test_a_message_that_cannot_be_forwarded_is_retried(
    worker_of: Callable[[int | None], DeployHarness], delivery: Delivery, error: Exception
) -> None:
    worker_of(1)
    delivery.broken = error
    with delivery.request(tasks.deploy, MESSAGE), pytest.raises(Retry):
        tasks.deploy.run(**MESSAGE)


@pytest.mark.parametrize("agent", [2, None])
def test_a_message_for_this_workers_agent_is_accepted(
    worker_of: Callable[[int | None], DeployHarness],
    delivery: Delivery,
    monkeypatch: pytest.MonkeyPatch,
    agent: int | None,
) -> None:
    worker_of(agent)
    accepted: list[Any] = []
    monkeypatch.setattr(tasks.DeployTask, "accept", lambda self, *args: accepted.append(args))
    with delivery.request(tasks.deploy, MESSAGE):
        tasks.deploy.run(**MESSAGE)
    assert accepted == [(tasks.DeployMessage, INITIALIZE, (), MESSAGE)]
    assert delivery.published == []


def test_a_step_of_another_agents_run_is_forwarded(
    worker_of: Callable[[int | None], DeployHarness], delivery: Delivery, sender: RecordingPublisher
) -> None:
    worker_of(1).accept(agent=2)
    kwargs = {"job": "42", "generation": 3}
    with delivery.request(tasks.await_running, kwargs):
        tasks.await_running.run(**kwargs)
    [sent] = sender.of(AWAIT_RUNNING.name)
    assert (sent.queue, sent.kwargs) == ("deploy.2", kwargs)


def test_a_forwarded_step_is_still_known_as_redelivered(
    worker_of: Callable[[int | None], DeployHarness], delivery: Delivery, sender: RecordingPublisher
) -> None:
    # Given a poll whose worker died between announcing the next one and publishing it
    worker_of(1).accept(agent=2)
    kwargs = {"job": "42", "generation": 3, "redelivered": False}

    # When it is delivered again, to a worker of another agent
    with delivery.request(tasks.await_running, kwargs, redelivered=True):
        tasks.await_running.run(**kwargs)

    # Then those of its agent do not take it for a copy of an older poll
    [sent] = sender.of(AWAIT_RUNNING.name)
    assert sent.kwargs == {"job": "42", "generation": 3, "redelivered": True}


def test_a_step_after_a_stop_cleans_up(
    worker_of: Callable[[int | None], DeployHarness], delivery: Delivery
) -> None:
    harness = worker_of(1)
    harness.accept()
    harness.update_state(plan=PLAN)
    harness.step(SERVE_RUN, lambda run: Suspend())
    Ownership(harness.services, APP).acquire("42", existed=False)
    harness.serve.application = DEPLOYING
    stop("42", harness.runs)
    with delivery.request(tasks.await_running, {"job": "42"}):
        tasks.await_running.run("42")
    assert harness.serve.removed == [APP]


def test_a_plan_is_made_within_the_share_of_its_release(
    worker_of: Callable[[int | None], DeployHarness],
    delivery: Delivery,
    new_thread: NewThread,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a worker whose threads for this release's code are taken
    harness, bulkhead = worker_of(1), Bulkhead(lambda: 5)
    monkeypatch.setattr(tasks, "bulkhead", bulkhead)
    harness.accept()
    busy = [new_thread(bulkhead) for _ in range(2)]
    assert all(thread.acquire(release_share(APP)) for thread in busy)

    # When the release is to plan its deployment, then the step is retried later
    with delivery.request(tasks.capacity_gate, {"job": "42"}), pytest.raises(Retry):
        tasks.capacity_gate.run("42")
    assert harness.host.calls == []

    # And when a thread is free, it does
    busy[0].release_all()
    generation = {"generation": harness.runs.generations.newest("42", "deploy.capacity_gate")}
    with delivery.request(tasks.capacity_gate, {"job": "42", **generation}):
        tasks.capacity_gate.run("42")
    assert harness.host.calls == ["plan"]
