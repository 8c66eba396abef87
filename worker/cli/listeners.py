"""Who answers on the message queue, and on which queues nobody listens."""

from typing import Any, Final

from worker.broker.config import QUEUES

SECONDS: Final = 2.0
"""How long to wait for answers."""


def silent_queues(answers: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The contract's queues that none of the workers that answered consumes."""
    heard = {queue["name"] for queues in answers.values() for queue in queues}
    return [name for name in QUEUES if name not in heard]


def active_queues() -> dict[str, list[dict[str, Any]]]:
    """The queues of each worker that answers in time, over Redis or RabbitMQ."""
    # Imported here: the app is made from the settings, which the caller has checked.
    from worker.app import app

    return app.control.inspect(timeout=SECONDS).active_queues() or {}
