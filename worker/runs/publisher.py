"""Publishes the messages of steps, and shows job, plugin and action of what is received, and nothing else."""

from typing import Any

from celery import Celery
from celery.worker.request import Request
from kombu.exceptions import EncodeError, OperationalError

from worker.platform import redact
from worker.runs.model import Step

VISIBLE_ARGUMENTS = ("job", "plugin", "action")


def visible_arguments(kwargs: Any) -> dict[str, str | int]:
    """The arguments that logs and task events may show."""
    if not isinstance(kwargs, dict):
        return {}
    values = {key: kwargs.get(key) for key in VISIBLE_ARGUMENTS}
    return {
        key: value[:100] if isinstance(value, str) else value
        for key, value in values.items()
        if isinstance(value, str | int)
    }


class RedactedRequest(Request):
    """Replaces what the publisher says of its arguments, on receipt: a bare `send_task` shows them all."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = "()"
        self._kwargsrepr = repr(visible_arguments(self._kwargs))
        self._request_dict["argsrepr"] = self._argsrepr
        self._request_dict["kwargsrepr"] = self._kwargsrepr

    def info(self, safe: bool = False) -> Any:  # noqa: ARG002 - `inspect active` asks for the unsafe form
        """What `inspect` and Flower see."""
        return super().info(safe=True)

    def send_event(self, type: str, **fields: Any) -> None:
        """Tell the monitors; what an exception or its traceback says is cleaned of secrets first."""
        shown = {name: redact(value) if isinstance(value, str) else value for name, value in fields.items()}
        super().send_event(type, **shown)


def send_task(app: Celery, task: str, queue: str, kwargs: dict[str, Any], **options: Any) -> None:
    """Send a message that shows none of its private arguments.

    Raises kombu's `OperationalError` when the broker does not take it after the app's retries.
    """
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
        # A connection that breaks under another thread's hands shows as anything, an AttributeError of
        # kombu's for one. It says nothing about the run.
        raise OperationalError(f"not published ({type(error).__name__})") from error


class CeleryPublisher:
    """Sends a step's message to its queue; what it carries is private. Knows what lies in a queue."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def publish(self, step: Step, queue: str, kwargs: dict[str, Any], countdown: float = 0.0) -> None:
        """Raises kombu's `OperationalError` when the broker does not take it after the app's retries."""
        send_task(self._app, step.name, queue, kwargs, countdown=countdown or None)

    def queue_length(self, queue: str) -> int:
        """Messages of `queue` that no worker has taken; 0 for a queue that does not exist.

        Raises kombu's `OperationalError` when the broker does not say.
        """
        with self._app.connection_or_acquire() as connection:
            try:
                with connection.channel() as channel:
                    return int(channel.queue_declare(queue, passive=True).message_count)
            except connection.channel_errors:
                return 0
            except connection.recoverable_connection_errors as error:
                raise OperationalError(f"queue not read ({type(error).__name__})") from error
