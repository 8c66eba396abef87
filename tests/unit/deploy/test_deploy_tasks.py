"""The doors: whose cluster a message is for, and what Celery makes of a step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.exceptions import Retry
from fakeredis import FakeRedis
from kombu.exceptions import OperationalError

from tests.unit.deploy.deploy_helpers import APP, DEPLOYING, STORED_PLAN, Yard
from tests.unit.runs.runs_helpers import RecordingSender
from worker.deploy import tasks
from worker.deploy.deployments import Ownership
from worker.deploy.plan import AWAIT_RUNNING, INITIALIZE, SERVE_RUN
from worker.runs.model import Suspend
from worker.runs.reporter import stop_run

MESSAGE = {"job": 42, "plugin": APP, "agent": 2}


class Delivered:
    """One message at a task's door."""

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
        task.push_request(
            id=uuid4().hex,
            args=[],
            kwargs=kwargs,
            called_directly=False,
            delivery_info={"exchange": "", "routing_key": "deploy", "redelivered": redelivered},
        )
        self._patch.setattr(task.__class__, "apply_async", lambda *args, **kwargs: None)
        try:
            yield
        finally:
            task.pop_request()


@pytest.fixture
def home(
    redis: FakeRedis, sender: RecordingSender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int | None], Yard]:
    """Workers that serve an agent."""

    def of(agent: int | None) -> Yard:
        yard = Yard(redis, sender, tmp_path, worker_agent=agent)
        monkeypatch.setattr(tasks, "services", lambda: yard.services)
        monkeypatch.setattr("worker.workflow.task.services", lambda: yard.services)
        monkeypatch.setattr(tasks, "_cluster", lambda: yard.cluster)
        return yard

    return of


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Delivered:
    app = Celery("test", broker="memory://", set_as_current=False)
    monkeypatch.setattr("celery._state._tls.current_app", app)
    return Delivered(app, monkeypatch)


def test_a_message_for_another_agent_is_passed_on_unchanged(
    home: Callable[[int | None], Yard], door: Delivered
) -> None:
    yard = home(1)
    with door.request(tasks.deploy, MESSAGE):
        tasks.deploy.run(**MESSAGE)
    [(name, options)] = door.published
    assert (name, options["kwargs"], options["queue"]) == ("deploy", MESSAGE, "deploy.2")
    assert "agent" not in options["kwargsrepr"]
    assert not yard.runs.store.exists("42")


@pytest.mark.parametrize(
    "error",
    [OperationalError("the broker is away"), AttributeError("'NoneType' object has no attribute 'client'")],
    ids=["broker away", "connection broken under another thread's hands"],
)
def test_a_message_that_cannot_be_passed_on_comes_back(
    home: Callable[[int | None], Yard], door: Delivered, error: Exception
) -> None:
    home(1)
    door.broken = error
    with door.request(tasks.deploy, MESSAGE), pytest.raises(Retry):
        tasks.deploy.run(**MESSAGE)


@pytest.mark.parametrize("agent", [2, None])
def test_a_message_for_this_workers_agent_is_taken_in(
    home: Callable[[int | None], Yard],
    door: Delivered,
    monkeypatch: pytest.MonkeyPatch,
    agent: int | None,
) -> None:
    home(agent)
    accepted: list[Any] = []
    monkeypatch.setattr(tasks.DeployTask, "accept", lambda self, *args: accepted.append(args))
    with door.request(tasks.deploy, MESSAGE):
        tasks.deploy.run(**MESSAGE)
    assert accepted == [(tasks.DeployMessage, INITIALIZE, (), MESSAGE)]
    assert door.published == []


def test_a_step_of_another_agents_run_is_passed_on(
    home: Callable[[int | None], Yard], door: Delivered, sender: RecordingSender
) -> None:
    home(1).accept(agent=2)
    kwargs = {"job": "42", "generation": 3}
    with door.request(tasks.await_running, kwargs):
        tasks.await_running.run(**kwargs)
    [sent] = sender.of(AWAIT_RUNNING.name)
    assert (sent.queue, sent.kwargs) == ("deploy.2", kwargs)


def test_a_step_that_is_passed_on_is_still_known_as_redelivered(
    home: Callable[[int | None], Yard], door: Delivered, sender: RecordingSender
) -> None:
    # Given a poll whose worker died between announcing the next one and publishing it
    home(1).accept(agent=2)
    kwargs = {"job": "42", "generation": 3, "redelivered": False}

    # When it is delivered again, to a worker of another agent
    with door.request(tasks.await_running, kwargs, redelivered=True):
        tasks.await_running.run(**kwargs)

    # Then those of its agent do not take it for a copy of an older poll
    [sent] = sender.of(AWAIT_RUNNING.name)
    assert sent.kwargs == {"job": "42", "generation": 3, "redelivered": True}


def test_a_step_after_a_stop_cleans_up(home: Callable[[int | None], Yard], door: Delivered) -> None:
    yard = home(1)
    yard.accept()
    yard.update_state(plan=STORED_PLAN)
    yard.step(SERVE_RUN, lambda run: Suspend())
    Ownership(yard.services, APP).acquire("42", existed=False)
    yard.cluster.here = DEPLOYING
    stop_run("42", yard.runs)
    with door.request(tasks.await_running, {"job": "42"}):
        tasks.await_running.run("42")
    assert yard.cluster.removed == [APP]
