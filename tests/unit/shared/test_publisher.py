"""The publisher sends what a bare `send_task` would."""

import contextlib
import socket
import ssl
import threading
from typing import Any

import pytest
import trustme
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import BaseModel

from shared import DeployMessage, Publisher, StopMessage, ToTaskMessage, publisher


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


def test_a_priority_is_that_of_the_message() -> None:
    with Publisher("memory://") as publisher:
        publisher.publish(StopMessage(job="1"), priority=6)
    with Connection("memory://") as connection, connection.SimpleQueue("control") as simple:
        assert simple.get(timeout=1).properties["priority"] == 6


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_message_carries_on_the_trace_of_its_caller() -> None:
    # Given a service that has a span of OpenTelemetry
    carrier = {"traceparent": TRACEPARENT}
    token = context.attach(TraceContextTextMapPropagator().extract(carrier))

    # When it publishes
    with Publisher("memory://") as publisher:
        publisher.publish(StopMessage(job="1"))
    context.detach(token)

    # Then the message is of its trace, and the body is as ever
    headers, body = taken("control")
    assert (headers["traceparent"], body[1]) == (TRACEPARENT, {"job": "1"})


def test_message_carries_on_the_given_context() -> None:
    with Publisher("memory://") as publisher:
        publisher.publish(StopMessage(job="1"), traceparent=TRACEPARENT)

    assert taken("control")[0]["traceparent"] == TRACEPARENT


def test_message_of_a_caller_without_a_trace_has_no_context() -> None:
    with Publisher("memory://") as publisher:
        publisher.publish(StopMessage(job="1"))

    assert "traceparent" not in taken("control")[0]


def test_message_is_a_span_of_a_service_that_records(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a service with the SDK, and a broker whose error shows a password
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    message = DeployMessage.model_validate(
        {"job": 42, "plugin": "a@1", "agent": 1, "params": {"note": "hush"}}
    )

    # When it publishes twice, the second time in vain
    with Publisher("memory://") as publisher:
        publisher.publish(message)
        monkeypatch.setattr(publisher._celery, "send_task", broken_by("redis://:hush@x"))
        with pytest.raises(OperationalError):
            publisher.publish(message)

    # Then both are spans, the first of which the worker carries on, without anything secret
    sent, failed = exporter.get_finished_spans()
    assert dict(sent.attributes or {}) == {
        "messaging.system": "celery",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "deploy",
        "synapse.job": "42",
        "synapse.plugin": "a@1",
    }
    assert (sent.name, failed.status.is_ok) == ("send deploy", False)
    assert taken("deploy")[0]["traceparent"].split("-")[2] == f"{sent.get_span_context().span_id:016x}"
    assert "hush" not in sent.to_json() + failed.to_json()


def broken_by(text: str) -> Any:
    def send_task(*_: object, **__: object) -> None:
        raise OperationalError(text)

    return send_task


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


def test_redis_that_never_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "REDIS_TIMEOUTS", dict.fromkeys(publisher.REDIS_TIMEOUTS, 0.1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"

        with Publisher(url) as silenced, pytest.raises(OperationalError):
            silenced.publish(StopMessage(job="1"))


def test_password_is_not_sent_without_a_trusted_certificate() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    received: list[bytes] = []

    def answer(listener: socket.socket) -> None:
        # Once for each try of the publisher; the listener's end ends it.
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listener.accept()
                with contextlib.suppress(ssl.SSLError), context.wrap_socket(plain, server_side=True) as made:
                    received.append(made.recv(1000))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=[listener], daemon=True).start()
        url = f"rediss://:password@localhost:{listener.getsockname()[1]}/0"

        with Publisher(url) as publisher, pytest.raises(OperationalError, match="certificate verify failed"):
            publisher.publish(StopMessage(job="1"))
    assert not any(received)


@pytest.mark.parametrize(
    ("url", "timeouts"),
    [
        ("redis://h/0", True),
        ("rediss://h/0", True),
        ("redis+socket:///run/redis.sock", True),
        ("sentinel://h:1;sentinel://i:1/0?master_name=m", True),
        ("amqp://h//", False),  # its connection knows no such arguments
    ],
)
def test_only_redis_gets_the_timeouts_of_redis(url: str, timeouts: bool) -> None:
    with Publisher(url) as made:
        options = made._celery.connection_for_write().transport_options

    assert ("socket_timeout" in options) is timeouts


def test_rabbitmq_must_confirm_the_message() -> None:
    with Publisher("amqp://h//") as made:
        assert made._celery.connection_for_write().transport_options == {"confirm_publish": True}


def test_given_broker_takes_precedence_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://127.0.0.1:9//")

    with Publisher("memory://") as publisher:
        id_ = publisher.publish(StopMessage(job="1"))

    assert taken("control")[0]["id"] == id_
