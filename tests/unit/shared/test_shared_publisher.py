"""The publisher sends what a bare `send_task` would."""

from typing import Any

import pytest
from celery import Celery
from kombu import Connection
from pydantic import BaseModel

from shared import DeployMessage, Publisher, StopMessage, ToTaskMessage


def taken(queue: str) -> tuple[dict[str, Any], list[Any]]:
    """Headers and body of the message that lies on the queue."""
    with Connection("memory://") as connection, connection.SimpleQueue(queue) as simple:
        message = simple.get(timeout=1)
        message.ack()
        assert message.content_type == "application/json"
        return message.headers, message.payload


@pytest.mark.parametrize(
    ("message", "kwargs"),
    [
        (
            DeployMessage(job=42, plugin="digits@1.0.0", agent=1),
            {"job": "42", "plugin": "digits@1.0.0", "agent": 1},
        ),
        (StopMessage(job="a-b"), {"job": "a-b"}),
        (
            ToTaskMessage.model_validate(
                {
                    "job": 1,
                    "plugin": "a@1",
                    "params": {
                        "name": "n",
                        "project": 1,
                        "agent": 1,
                        "schema": "any",
                        "target_specification_name": "s",
                    },
                }
            ),
            {
                "job": "1",
                "plugin": "a@1",
                "params": {
                    "name": "n",
                    "project": 1,
                    "agent": 1,
                    "schema": "any",
                    "target_specification_name": "s",
                },
            },
        ),
    ],
)
def test_message_is_the_same_as_a_bare_send_task(message: Any, kwargs: dict[str, Any]) -> None:
    with Publisher("memory://") as publisher:
        id_ = publisher.publish(message)
    headers, body = taken(message.queue)

    bare = Celery("bare", broker="memory://", set_as_current=False)
    bare.send_task(message.task, kwargs=kwargs, queue=message.queue)
    bare_headers, bare_body = taken(message.queue)
    bare.close()

    assert body == bare_body
    assert body[:2] == [[], kwargs]
    assert headers["task"] == bare_headers["task"] == message.task
    assert headers["id"] == id_


def test_arguments_are_not_shown() -> None:
    message = DeployMessage.model_validate(
        {"job": 42, "plugin": "digits@1.0.0", "agent": 1, "params": {"note": "hush-hush"}}
    )
    with Publisher("memory://") as publisher:
        publisher.publish(message)
    headers, _ = taken("deploy")

    assert headers["argsrepr"] == "()"
    assert headers["kwargsrepr"] == "{'job': '42', 'plugin': 'digits@1.0.0'}"


def test_messages_are_plain_models() -> None:
    assert issubclass(DeployMessage, BaseModel)
    with pytest.raises(ValueError):
        DeployMessage(job=1, plugin="a@1", agent=1).job = "2"  # type: ignore[misc]
