"""A task whose message can be delivered again: what is known of its deliveries, and its next one."""

import random
from typing import Any, NoReturn

import structlog
from celery import Task, exceptions

from shared.statuses import JobStatus
from worker import blame
from worker.blame import Retries
from worker.platform import clean
from worker.runs.heartbeat import run_member
from worker.runs.model import Finish
from worker.runs.runs import Runs

log = structlog.get_logger(__name__)

WAITED_HEADER = "synapse_waited_seconds"
"""Header of a retried message: the seconds that it has waited for what may be waited for only so long."""


NEWER_HEADER = "synapse_newer_seconds"
"""Header of a retried message: the seconds that it has waited for a worker of a newer release."""

INFRASTRUCTURE_RETRY_SECONDS = 1.0
MAX_DEPENDENCY_WAIT_SECONDS = 3600.0
"""How long a message is retried for a dependency that answers with errors, or for this host: its countdowns
in all. Those for a dependency that is unavailable or asks for later calls are not among them."""
REJECTED_TEXT = "Redis has rejected a command for an hour"

MAX_DEATHS = 5
"""Workers that may die one after the other during a step that gets no further."""
MIN_DEATHS_TO_SEPARATE = 2
"""From so many on, the step is delayed at random after each."""
DEATHS_ADVICE = "see why they ended, such as the memory limit of a worker or native code of the plugin"


class DeliveredTask(Task):
    """The base class of `StepTask`."""

    abstract = True

    @property
    def runs(self) -> Runs:
        """The runs of this process."""
        raise NotImplementedError

    def is_redelivered(self) -> bool:
        """Whether it is unknown how far an earlier delivery of this message came."""
        by_broker = (self.request.delivery_info or {}).get("redelivered")
        return bool(by_broker or self.request.kwargs.get("redelivered"))

    def waited_seconds(self, header: str = WAITED_HEADER) -> float:
        """What the message has waited in all, for what this header is for."""
        value = (self.request.headers or {}).get(header)
        return float(value) if isinstance(value, int | float) else 0.0

    def retry_later(
        self,
        countdown: float,
        *,
        max_countdown: float | None = None,
        waited_seconds: float | None = None,
        newer_seconds: float | None = None,
        **changes: Any,
    ) -> NoReturn:
        """Deliver this message again after `countdown` seconds, with the arguments in `changes`.

        `max_countdown`: seconds, in place of the longest countdown that the worker itself chooses.
        `waited_seconds`, `newer_seconds`: new values of `WAITED_HEADER` and `NEWER_HEADER`; else as before.
        """
        kwargs = {**self.request.kwargs, **changes}
        if max_countdown is None:
            max_countdown = self.runs.timing.max_countdown
        waited = self.waited_seconds() if waited_seconds is None else waited_seconds
        headers = {**(self.request.headers or {}), WAITED_HEADER: waited}
        if newer_seconds is not None:
            headers[NEWER_HEADER] = newer_seconds
        try:
            self.retry(kwargs=kwargs, countdown=min(countdown, max_countdown), headers=headers)
        except exceptions.Retry as retry:
            # Without the error behind it, because monitors are shown the whole chain of exceptions.
            raise retry from None
        except exceptions.Reject as reject:
            # The retry could not be published. Celery would drop the message; requeued, the broker keeps it.
            raise exceptions.Reject(reject.reason, requeue=True) from None
        raise AssertionError("retry always raises")

    def retry_for_infrastructure(self, error: Exception, **changes: Any) -> None:
        """Deliver this message again because of an error of Redis or the broker.

        Returns when it has been retried for long enough: a command that Redis rejects may never work.
        """
        if blame.in_step(error).retries is Retries.UNLIMITED:
            self.retry_later(INFRASTRUCTURE_RETRY_SECONDS, **changes)
        waited = self.waited_seconds()
        if waited < MAX_DEPENDENCY_WAIT_SECONDS:
            growing = max(INFRASTRUCTURE_RETRY_SECONDS, waited / 2)
            countdown = min(growing, self.runs.timing.max_countdown)
            self.retry_later(countdown, waited_seconds=waited + countdown, **changes)
        log.error(REJECTED_TEXT, error_type=type(error).__name__, error=clean(str(error)))

    def end_after_deaths(self, name: str, job: str, died: int) -> Finish | None:
        """The end of a run whose step killed worker after worker; None when the step is to be tried."""
        if died >= MAX_DEATHS:
            log.error("step not tried again", deaths=died)
            return Finish(JobStatus.FAILED, {"error": f"{died} workers died during {name}; {DEATHS_ADVICE}"})
        if died >= MIN_DEATHS_TO_SEPARATE and self.request.kwargs.get("separated") != died:
            # The steps that were in a dead worker are delivered together. Apart, only the reason dies again.
            log.warning("step of dead workers delayed", deaths=died)
            countdown = random.uniform(0.0, self.runs.timing.max_countdown)
            self.runs.heartbeats.schedule(run_member(job), countdown)
            self.retry_later(countdown, redelivered=True, separated=died)
        return None
