"""Task events are sent while a monitor asks for them: they cost a worker as much as a short task itself."""

import time
from typing import Any

import structlog
from celery import bootsteps
from celery.worker import control

log = structlog.get_logger(__name__)

GROUP = "task"
LEASE_SECONDS = 20.0
"""How long events are sent after a monitor has asked for them, as Flower does every five seconds."""
SECONDS_BETWEEN_CHECKS = 5.0


class _Lease:
    """When a monitor has asked last, in this process."""

    asked_at = 0.0

    def renew(self) -> None:
        self.asked_at = time.monotonic()

    def is_over(self) -> bool:
        return time.monotonic() - self.asked_at > LEASE_SECONDS


_lease = _Lease()


@control.control_command()
def enable_events(state: Any) -> Any:
    """Send task events for some seconds: Celery's own command sends them until the worker ends."""
    _lease.renew()
    return control.enable_events(state)


class TaskEventsStep(bootsteps.StartStopStep):
    """Sends task events from the start, as a monitor may be there, and no more when none has asked for long.

    With `-E` they are sent always.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._timer: Any = None

    def start(self, parent: Any) -> None:
        """The consumer has a connection, and a new dispatcher of events."""
        if not parent.event_dispatcher.groups:
            return
        _lease.renew()
        parent.event_dispatcher.groups.add(GROUP)
        self._timer = parent.timer.call_repeatedly(SECONDS_BETWEEN_CHECKS, self.check, (parent,))

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - the bootstep's signature
        """The connection is lost, or the worker ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @staticmethod
    def check(consumer: Any) -> None:
        """Send no more task events when nobody asks for them."""
        dispatcher = consumer.event_dispatcher
        if dispatcher is not None and GROUP in dispatcher.groups and _lease.is_over():
            dispatcher.groups.discard(GROUP)
            log.info("task events ended", reason="no monitor asks for them")
