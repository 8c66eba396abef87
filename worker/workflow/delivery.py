"""A task whose message can be delivered again: what is known of its deliveries, and its next one."""

import random
from typing import Any, NoReturn

import structlog
from celery import Task, exceptions

from shared.statuses import JobStatus
from worker.runs.heartbeat import run_member
from worker.runs.model import Finish
from worker.runs.runs import Runs

log = structlog.get_logger(__name__)

WAITED_HEADER = "synapse_waited_seconds"
"""Header of a retried message: the seconds that it has waited for what may be waited for only so long."""


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

    def waited_seconds(self) -> float:
        """What the message has waited in all, see `WAITED_HEADER`."""
        value = (self.request.headers or {}).get(WAITED_HEADER)
        return float(value) if isinstance(value, int | float) else 0.0

    def retry_later(
        self,
        countdown: float,
        *,
        max_countdown: float | None = None,
        waited_seconds: float | None = None,
        **changes: Any,
    ) -> NoReturn:
        """Deliver this message again after `countdown` seconds, with the arguments in `changes`.

        `max_countdown`: seconds, in place of the longest countdown that the worker itself chooses.
        `waited_seconds`: what the message has waited in all; by default as before (`WAITED_HEADER`).
        """
        kwargs = {**self.request.kwargs, **changes}
        if max_countdown is None:
            max_countdown = self.runs.timing.max_countdown
        waited = self.waited_seconds() if waited_seconds is None else waited_seconds
        headers = {**(self.request.headers or {}), WAITED_HEADER: waited}
        try:
            self.retry(kwargs=kwargs, countdown=min(countdown, max_countdown), headers=headers)
        except exceptions.Retry as retry:
            # Without the error behind it, because monitors are shown the whole chain of exceptions.
            raise retry from None
        except exceptions.Reject as reject:
            # The retry could not be published. Celery would drop the message; requeued, the broker keeps it.
            raise exceptions.Reject(reject.reason, requeue=True) from None
        raise AssertionError("retry always raises")

    def end_after_deaths(self, name: str, job: str, died: int) -> Finish | None:
        """The end of a run whose step killed worker after worker; None when the step is to be tried."""
        if died >= MAX_DEATHS:
            log.error("step not tried again", deaths=died)
            return Finish(JobStatus.FAILED, {"error": f"{died} workers died during {name}; {DEATHS_ADVICE}"})
        if died >= MIN_DEATHS_TO_SEPARATE and self.request.kwargs.get("separated") != died:
            # All steps that were in a dead worker come back together. Apart, only the one dies again that is
            # the reason.
            log.warning("step of dead workers delayed", deaths=died)
            countdown = random.uniform(0.0, self.runs.timing.max_countdown)
            self.runs.heartbeats.schedule(run_member(job), countdown)
            self.retry_later(countdown, redelivered=True, separated=died)
        return None
