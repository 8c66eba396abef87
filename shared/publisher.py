"""Publish work: a thin, typed layer over Celery's ``send_task``."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

from celery import Celery

from shared.messages import Message
from shared.redis_url import is_redis_url, read_redis_url

REDIS_TIMEOUTS = {"socket_connect_timeout": 4, "socket_timeout": 5}
"""Seconds. Without them a Redis that accepts a connection and never answers blocks the publisher forever."""

PRIORITIES = range(10)
"""Those that a message may have on Redis."""

CONFIRM_TIMEOUT_SECONDS = 5
"""How long RabbitMQ may take to confirm that it has stored the message."""


@contextmanager
def _traced(message: Message, shown: Mapping[str, object]) -> Iterator[dict[str, str]]:
    """The headers with the context of a span of this message; none where nobody has loaded OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        yield {}
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    attributes = {
        "messaging.system": "celery",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": message.queue,
        **{f"synapse.{name}": str(value) for name, value in shown.items()},
    }
    tracer, kind = trace.get_tracer("synapse-worker"), trace.SpanKind.PRODUCER
    with tracer.start_as_current_span(
        f"send {message.task}",
        kind=kind,
        attributes=attributes,
        # An exception of the broker's client may show the password in its URL.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers)
        try:
            yield headers
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(trace.StatusCode.ERROR)
            raise


class Publisher:
    """Publishes messages to the worker's queues (contract: "Work comes in as Celery messages").

    Use it as a context manager, or call `close` when it is no longer needed.
    """

    def __init__(self, broker_url: str) -> None:
        """Prepare a publisher; nothing is connected before the first message.

        Args:
            broker_url: The broker that the workers consume from, as in their CELERY_BROKER_URL, for example
                `redis://127.0.0.1:6379/0` or `amqp://guest@rabbit//`; a Redis as `read_redis_url` reads it.

        Raises:
            ValueError: The URL of a Redis cannot be read.
        """
        # RabbitMQ confirms a message only when asked to; without that, one that is killed before it stored
        # the message loses it unnoticed.
        options: dict[str, object] = {"confirm_publish": True}
        tls_options: dict[str, object] | None = None
        if is_redis_url(broker_url):
            redis_url = read_redis_url(broker_url)
            broker_url, tls_options = redis_url.broker_url, redis_url.tls_options
            options = {**REDIS_TIMEOUTS, **redis_url.transport_options}
        self._celery = Celery(
            "synapse-publisher", broker=broker_url, amqp="shared.redis_broker:AMQP", set_as_current=False
        )
        self._celery.conf.update(
            task_serializer="json",
            task_ignore_result=True,
            # These are settings of a worker; a publisher sends no event for each message.
            task_send_sent_event=False,
            broker_connection_timeout=4,
            # Celery prefers the environment's CELERY_BROKER_URL to the address that it is given.
            broker_write_url=broker_url,
            broker_transport_options=options,
            broker_use_ssl=tls_options,
        )

    def publish(
        self, message: Message, *, priority: int | None = None, traceparent: str | None = None
    ) -> str:
        """Send a message to its queue.

        Keys that were left at their default are not sent, so that an older worker accepts what it knows. In a
        service that uses OpenTelemetry the message has a span, and carries its trace on.

        Args:
            message: A `DeployMessage`, `ToTaskMessage`, `TailLogsMessage` or `StopMessage`.
            priority: Celery's priority of the message, which all steps of its run have, too. On Redis 0, the
                default, is the most urgent and 9 the least, with the steps 0, 3, 6 and 9. On RabbitMQ a
                higher number is more urgent, in queues that were declared with `x-max-priority`.
            traceparent: W3C's context of the trace that the message belongs to, as an HTTP header has it; by
                default that of OpenTelemetry in this service.

        Returns:
            The id of the Celery task.

        Raises:
            kombu.exceptions.OperationalError: The broker cannot be reached within a few seconds, or did not
                confirm the message within `CONFIRM_TIMEOUT_SECONDS`.
        """
        kwargs = message.model_dump(mode="json", exclude_unset=True, by_alias=True)
        # The contract: beyond these three, a message's arguments are not shown in logs or task events.
        shown: dict[str, object] = {key: kwargs[key] for key in ("job", "plugin", "action") if key in kwargs}
        with (
            _traced(message, shown)
            if traceparent is None
            else nullcontext({"traceparent": traceparent}) as headers
        ):
            sent = self._celery.send_task(
                message.task,
                kwargs=kwargs,
                queue=message.queue,
                argsrepr="()",
                kwargsrepr=repr(shown),
                confirm_timeout=CONFIRM_TIMEOUT_SECONDS,
                headers=headers or None,
                **({} if priority is None else {"priority": priority}),
            )
        return str(sent.id)

    def close(self) -> None:
        """Close the connections to the broker."""
        self._celery.close()

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
