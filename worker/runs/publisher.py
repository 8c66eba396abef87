"""Publishes the messages of steps, of which logs and task events show job, plugin and action alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import Celery
from celery.worker.request import Request
from kombu.exceptions import EncodeError, OperationalError

from worker import tracing
from worker.platform import redact
from worker.runs.model import Step
from worker.runs.store import CollectedMessage

VISIBLE_ARGUMENTS = ("job", "plugin", "action")

STEP_HEADER = "synapse_step"
"""Header of the messages that workers send to each other. A worker that lacks the task of such a message is
older than its publisher."""

NEXT_STEP = "next"
"""Value of that header for the next step of a run, which goes before the runs that wait in the same queue.
Others, such as chunks, share their queue with steps alone, and stay in their order."""

NEXT_STEP_PRIORITY = 9
"""Priority on RabbitMQ, whose queues have priorities where the operator declares them, of the next step of a
run whose message has none."""

_collecting: ContextVar[list[CollectedMessage] | None] = ContextVar("collecting", default=None)


def collected_messages() -> list[CollectedMessage] | None:
    """Where the transport is to put a message that is being published; None: into its queue."""
    return _collecting.get()


def visible_arguments(kwargs: object) -> dict[str, str | int]:
    """The arguments that logs and task events may show.

    A job is a text, as in the messages of steps, so that a monitor's search finds them and the first message.
    """
    if not isinstance(kwargs, dict):
        return {}
    values = {key: kwargs.get(key) for key in VISIBLE_ARGUMENTS}
    if isinstance(values["job"], int):
        values["job"] = str(values["job"])
    return {
        key: value[:100] if isinstance(value, str) else value
        for key, value in values.items()
        if isinstance(value, str | int)
    }


class RedactedRequest(Request):
    """Replaces the publisher's `argsrepr` on receipt, because a bare `send_task` shows all arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = "()"
        self._kwargsrepr = repr(visible_arguments(self._kwargs))
        self._request_dict["argsrepr"] = self._argsrepr
        self._request_dict["kwargsrepr"] = self._kwargsrepr

    def info(self, safe: bool = False) -> Any:  # noqa: ARG002 - `inspect active` asks for the unsafe form
        """What `inspect` and Flower show."""
        return super().info(safe=True)

    def send_event(self, type: str, **fields: Any) -> None:
        """Send a task event, with secrets removed from the texts of exceptions and tracebacks."""
        groups = getattr(getattr(self, "_eventer", None), "groups", None)
        if groups and "task" not in groups:
            return  # No monitor asks for them, see `worker.monitoring.task_events`.
        shown = {name: redact(value) if isinstance(value, str) else value for name, value in fields.items()}
        super().send_event(type, **shown)


def send_task(app: Celery, task: str, queue: str, kwargs: Mapping[str, object], **options: Any) -> None:
    """Publish a message that shows none of its private arguments.

    Raises kombu's `OperationalError` when the broker does not accept it after the app's retries.
    """
    if headers := tracing.message_headers(kwargs.get("job")):
        options["headers"] = {**headers, **(options.get("headers") or {})}
    try:
        app.send_task(
            task,
            kwargs=kwargs,
            queue=queue,
            argsrepr="()",
            kwargsrepr=repr(visible_arguments(kwargs)),
            **options,
        )
    except (OperationalError, EncodeError):
        raise
    except Exception as error:
        # A connection that breaks while another thread uses it raises anything, such as an AttributeError of
        # kombu's. It says nothing about the run.
        raise OperationalError(f"not published ({type(error).__name__})") from error


class CeleryPublisher:
    """Publishes the messages of steps with private arguments, and counts the messages of queues."""

    def __init__(self, app: Celery, *, shares_redis: bool = False, is_redis: bool = True) -> None:
        """`shares_redis`: the queues are in the Redis database of the runs; `is_redis`: in some Redis."""
        self._app = app
        self.shares_redis = shares_redis
        self.is_redis = is_redis
        """Whether a worker leaves in the queue what it cannot begin."""

    def publish(
        self,
        step: Step,
        queue: str,
        kwargs: Mapping[str, object],
        countdown: float = 0.0,
        priority: int = 0,
        headers: Mapping[str, object] | None = None,
    ) -> None:
        """Publish to `queue`, to be delivered after `countdown` seconds; `priority` is the run's.

        `headers`: those of an earlier message that this one continues. Raises kombu's
        `OperationalError` when the broker does not accept it after the app's retries.
        """
        is_next = not countdown and step.queue is None
        options: dict[str, object] = {"countdown": countdown or None}
        options["headers"] = {**(headers or {}), STEP_HEADER: NEXT_STEP if is_next else True}
        if is_next and not self.is_redis:
            priority = priority or NEXT_STEP_PRIORITY
        if priority:
            options["priority"] = priority
        send_task(self._app, step.name, queue, kwargs, **options)

    @contextmanager
    def collecting(self) -> Iterator[list[CollectedMessage] | None]:
        """Collect what this thread publishes within the block, for a script that writes more than that.

        Celery's signals are sent as usual. None where the queues are not in the Redis of the runs:
        everything is published as usual, and nothing collected.
        """
        messages: list[CollectedMessage] | None = [] if self.shares_redis else None
        token = _collecting.set(messages)
        try:
            yield messages
        finally:
            _collecting.reset(token)

    def queue_length(self, queue: str) -> int:
        """Messages of `queue` that no worker has fetched; 0 for a queue that does not exist.

        Raises kombu's `OperationalError` when the broker does not answer.
        """
        with self._app.connection_or_acquire() as connection:
            try:
                with connection.channel() as channel:
                    return int(channel.queue_declare(queue, passive=True).message_count)
            except connection.channel_errors:
                return 0
            except connection.recoverable_connection_errors as error:
                raise OperationalError(f"queue not read ({type(error).__name__})") from error
