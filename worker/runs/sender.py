"""Publishes the messages of steps through the Celery app."""

from typing import Any

from celery import Celery
from kombu.exceptions import EncodeError, OperationalError

from worker.runs.outcomes import Step
from worker.runs.request import shown


def publish(app: Celery, task: str, queue: str, kwargs: dict[str, Any], **options: Any) -> None:
    """Send a message that shows none of its private arguments.

    Raises kombu's `OperationalError` when the broker does not take it after the app's retries.
    """
    try:
        app.send_task(
            task, kwargs=kwargs, queue=queue, argsrepr="()", kwargsrepr=repr(shown(kwargs)), **options
        )
    except (OperationalError, EncodeError):
        raise
    except Exception as error:
        # A connection that breaks under another thread's hands shows as anything, an AttributeError of
        # kombu's for one. It says nothing about the run.
        raise OperationalError(f"not published ({type(error).__name__})") from error


class CelerySender:
    """Sends a step's message to its queue; what it carries is private. Knows what lies in a queue."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def send(self, step: Step, queue: str, kwargs: dict[str, Any], countdown: float = 0.0) -> None:
        """Raises kombu's `OperationalError` when the broker does not take it after the app's retries."""
        publish(self._app, step.name, queue, kwargs, countdown=countdown or None)

    def unread(self, queue: str) -> int:
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
