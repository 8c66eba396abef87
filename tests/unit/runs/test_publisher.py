"""What is published, and what logs and monitors show of it."""

import json
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.utils.imports import symbol_by_name
from kombu import Connection
from kombu.exceptions import OperationalError

from worker.runs.model import Step
from worker.runs.publisher import CeleryPublisher, visible_arguments
from worker.workflow.task import StepTask

SECRET = "hush-hush-hush"


@pytest.fixture
def app() -> Celery:
    app = Celery("quiet", broker="memory://", set_as_current=False)

    @app.task(base=StepTask, bind=True, name="quiet.task", shared=False)
    def deploy(self: StepTask, **_: Any) -> None: ...

    return app


@pytest.mark.parametrize(
    ("is_redis", "given", "published"), [(True, 0, 0), (True, 6, 6), (False, 0, 9), (False, 3, 3)]
)
def test_a_step_has_the_priority_of_its_run(app: Celery, is_redis: bool, given: int, published: int) -> None:
    publisher = CeleryPublisher(app, is_redis=is_redis)

    publisher.publish(Step("quiet.task", 10), "prioritized", {"job": "42"}, priority=given)

    assert received(app, "prioritized").delivery_info["priority"] == published


def received(app: Celery, queue: str) -> Any:
    """The request that a worker makes of the message on the queue."""
    with Connection("memory://") as connection, connection.SimpleQueue(queue) as simple:
        message = simple.get(timeout=1)
        message.ack()
    request = symbol_by_name(app.tasks["quiet.task"].Request)
    return request(message, app=app, task=app.tasks["quiet.task"], eventer=Mock())


@pytest.fixture
def bare(app: Celery) -> Any:
    """Published without a thought for secrecy."""
    kwargs = {"job": 42, "plugin": "digits@1.0.0", "agent": 1, "params": {"note": SECRET}}
    app.send_task("quiet.task", args=[SECRET], kwargs=kwargs, queue="quiet")
    return received(app, "quiet")


class BrokenApp:
    """What kombu does when its connection breaks under another thread's hands."""

    def send_task(self, *_: Any, **__: Any) -> None:
        raise AttributeError("'NoneType' object has no attribute 'client'")


def test_bare_message_shows_job_and_plugin_only(bare: Any) -> None:
    assert (bare.argsrepr, bare.kwargsrepr) == ("()", "{'job': '42', 'plugin': 'digits@1.0.0'}")


def test_running_task_sees_the_redacted_arguments_too(bare: Any) -> None:
    assert SECRET not in str(
        {key: value for key, value in bare.request_dict.items() if key not in {"args", "kwargs"}}
    )


@pytest.mark.parametrize("safe", [True, False])
def test_inspect_shows_no_arguments(bare: Any, safe: bool) -> None:
    assert SECRET not in json.dumps(bare.info(safe=safe))


def test_task_still_gets_its_arguments(bare: Any) -> None:
    assert bare.kwargs["params"] == {"note": SECRET}


def test_line_of_the_request_shows_no_arguments(bare: Any) -> None:
    assert SECRET not in f"{bare} {bare!r} {bare.humaninfo()}"


def test_step_message_shows_its_job_only(app: Celery) -> None:
    CeleryPublisher(app).publish(Step("quiet.task", 10), "steps", {"job": "42", "note": SECRET}, 0.5)

    request = received(app, "steps")

    assert (request.argsrepr, request.kwargsrepr) == ("()", "{'job': '42'}")
    assert request.eta is not None


def test_step_without_countdown_has_no_eta(app: Celery) -> None:
    CeleryPublisher(app).publish(Step("quiet.task", 10), "steps", {"job": "42"})

    assert received(app, "steps").eta is None


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        (None, {}),
        ([], {}),
        ({}, {}),
        ({"job": {"a": SECRET}}, {}),
        ({"job": "x" * 500}, {"job": "x" * 100}),
        ({"job": None, "action": "a", "plugin": "p", "params": SECRET}, {"plugin": "p", "action": "a"}),
    ],
)
def test_only_job_plugin_and_action_are_shown(kwargs: Any, expected: dict[str, Any]) -> None:
    assert visible_arguments(kwargs) == expected


def test_whatever_breaks_while_publishing_is_the_brokers_error() -> None:
    publisher: Any = CeleryPublisher(BrokenApp())  # type: ignore[arg-type]

    with pytest.raises(OperationalError, match="AttributeError"):
        publisher.publish(Step("to_task.prepare", position=20), "to_task", {"job": "1"})
