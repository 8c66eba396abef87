"""A task whose message can be delivered again: what is known of its deliveries, and its next one."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import structlog
from celery import Task, exceptions

from shared.statuses import JobStatus
from worker import blame, metrics, tracing
from worker.blame import RejectedMessageError, Retries
from worker.platform import clean, shorten
from worker.runs.bulkhead import ALL_STEPS, bulkhead
from worker.runs.model import AnyRun, Finish, Reschedule, RunFailedError
from worker.runs.publisher import NEXT_STEP, STEP_HEADER, visible_arguments
from worker.runs.runs import Runs

log = structlog.get_logger(__name__)

WAITED_HEADER = "synapse_waited_seconds"
"""Header of a retried message: the seconds that it has waited for what may be waited for only so long."""


NEWER_HEADER = "synapse_newer_seconds"
"""Header of a retried message: the seconds that it has waited for a worker of a newer release."""

SEPARATED_HEADER = "synapse_separated"
"""Header of a retried message: after how many deaths it was delayed at random."""

MAX_PRIORITY = 255
"""The highest that AMQP knows; on Redis whatever is above 9 is taken as that."""

INFRASTRUCTURE_RETRY_SECONDS = 1.0
MAX_DEPENDENCY_WAIT_SECONDS = 3600.0
"""How long a message is retried for a dependency that answers with errors, or for this host: its countdowns
in all. Those for a dependency that is unavailable or asks for later calls are not among them."""
MAX_USER_MESSAGE_CHARS = 5_000
"""Of a text for users, kept in Redis, events and the job's result. A plugin's error fits in whole."""
REJECTED_TEXT = "Redis has rejected a command for an hour"


def user_message(error: Exception) -> str:
    """What users read of an exception: a RuntimeError's text, others with their type; redacted and cut."""
    text = clean(str(error))
    if not (isinstance(error, RuntimeError) and text):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return shorten(text, MAX_USER_MESSAGE_CHARS)


@dataclass(frozen=True)
class Retry:
    """The message is to be delivered again after `countdown` seconds, with these arguments changed."""

    countdown: float
    changes: Mapping[str, int | bool] = field(default_factory=dict)
    is_asked_for: bool = False
    """A service asked for this countdown, so it may be longer than those that the worker itself chooses."""
    waited_seconds: float | None = None
    """The new value of `WAITED_HEADER`; None leaves it."""
    goes_first: bool = False
    """Whether it goes before the others in its queue when it has no countdown, as a run's next step does.
    A chunk does not: those of large runs would keep those of small ones waiting."""

    @classmethod
    def after(cls, outcome: Reschedule) -> "Retry":
        """How the message of a step comes again that is to be repeated."""
        if outcome.keeps_retries:
            return cls(outcome.countdown, is_asked_for=outcome.is_asked_for)
        return cls(outcome.countdown, {"attempt": 0}, outcome.is_asked_for, waited_seconds=0.0)

    def limited_to(self, max_countdown: float) -> float:
        """The countdown, at most the longest that the worker itself chooses unless it is asked for."""
        return self.countdown if self.is_asked_for else min(self.countdown, max_countdown)


class DeliveredTask(Task):
    """The base class of `DeathCountingTask`, and so of `StepTask`."""

    abstract = True
    throws = (RunFailedError, RejectedMessageError)
    """What a task raises last, so that monitors show it as failed: the end of the run is recorded by then, or
    the message kept. It is acknowledged, and Celery logs one line, for the worker's log has the cause."""

    @property
    def runs(self) -> Runs:
        """The runs of this process."""
        raise NotImplementedError

    @property
    def priority(self) -> int:
        """The Celery priority of the message; 0 where it has none."""
        found = (self.request.delivery_info or {}).get("priority")
        return min(max(found, 0), MAX_PRIORITY) if isinstance(found, int) else 0

    def is_redelivered(self) -> bool:
        """Whether it is unknown how far an earlier delivery of this message came."""
        by_broker = (self.request.delivery_info or {}).get("redelivered")
        return bool(by_broker or self.request.kwargs.get("redelivered"))

    def waited_seconds(self, header: str = WAITED_HEADER) -> float:
        """What the message has waited in all, for what this header is for."""
        value = (self.request.headers or {}).get(header)
        return float(value) if isinstance(value, int | float) else 0.0

    def progress_of_retries(self) -> tuple[dict[str, object], dict[str, object]]:
        """Arguments and headers by which a message that continues this one is retried no longer than it."""
        found, kwargs = self.request.headers or {}, self.request.kwargs
        names = (WAITED_HEADER, NEWER_HEADER, SEPARATED_HEADER)
        return (
            {"attempt": kwargs["attempt"]} if "attempt" in kwargs else {},
            {name: found[name] for name in names if name in found},
        )

    def retry_later(
        self,
        countdown: float,
        *,
        max_countdown: float | None = None,
        waited_seconds: float | None = None,
        newer_seconds: float | None = None,
        separated: int | None = None,
        goes_first: bool = False,
        **changes: Any,
    ) -> NoReturn:
        """Deliver this message again after `countdown` seconds, with the arguments in `changes`.

        `max_countdown`: seconds, in place of the longest countdown that the worker itself chooses.
        `waited_seconds`, `newer_seconds`, `separated`: new values of the headers of this module; else as
        before. `goes_first`: see `Retry`.
        """
        kwargs = {**self.request.kwargs, **changes}
        if max_countdown is None:
            max_countdown = self.runs.timing.max_countdown
        waited = self.waited_seconds() if waited_seconds is None else waited_seconds
        carried = tracing.message_headers(kwargs.get("job"))
        headers = {**carried, **(self.request.headers or {}), WAITED_HEADER: waited}
        if goes_first and countdown <= 0:
            headers[STEP_HEADER] = NEXT_STEP
        if newer_seconds is not None:
            headers[NEWER_HEADER] = newer_seconds
        if separated is not None:
            headers[SEPARATED_HEADER] = separated
        try:
            self.retry(kwargs=kwargs, countdown=min(countdown, max_countdown), headers=headers)
        except exceptions.Retry as retry:
            # Without the error behind it, because monitors are shown the whole chain of exceptions.
            raise retry from None
        except exceptions.Reject as reject:
            # The retry could not be published. Celery would drop the message; requeued, the broker keeps it.
            raise exceptions.Reject(reject.reason, requeue=True) from None
        raise AssertionError("retry always raises")

    def reschedule(self, run: AnyRun, name: str, retry: Retry) -> Retry | exceptions.Retry:
        """Announce the next generation of the step `name`, publish its message and release its lock.

        A dependency that hangs holds a step for longer than the visibility timeout. The copies that were
        delivered meanwhile are superseded, or there would be one more of them each time.

        Returns what `retry_as` is to do. Where the queues are in the Redis of the runs, one script does all
        of it, and only Celery is to hear of the retry. Elsewhere the message is published after the script.
        """
        countdown = retry.limited_to(self.runs.timing.max_countdown)
        published = None
        with self.runs.publisher.collecting() as messages:
            if messages is not None:
                changes = {**retry.changes, "generation": run.generation + 1, "redelivered": False}
                try:
                    self.retry_as(replace(retry, changes=changes))
                except exceptions.Retry as signal:
                    published = signal
        generation = self.runs.store.reschedule_step(run, name, countdown, messages)
        return published or replace(
            retry, changes={**retry.changes, "generation": generation, "redelivered": False}
        )

    def retry_as(self, retry: object) -> None:
        """Deliver this message again if `retry` is a `Retry`.

        Raise it if it is Celery's, and published, or says that the run has failed.
        """
        if isinstance(retry, exceptions.Retry | RunFailedError):
            raise retry
        if isinstance(retry, Retry):
            countdown = retry.limited_to(self.runs.timing.max_countdown)
            self.retry_later(
                countdown,
                max_countdown=countdown,
                waited_seconds=retry.waited_seconds,
                goes_first=retry.goes_first,
                **retry.changes,
            )

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

    @contextmanager
    def traced(self, run: AnyRun | None = None, part: str = "") -> Iterator[None]:
        """Trace what this delivery does: as a part of the run's trace, or of the one that the message names.

        `part`: the chunk. A message that comes for nothing, such as a copy, shows in no trace.
        """
        if not tracing.is_enabled():
            yield
            return
        request = self.request
        context = (run and run.traceparent) or (request.headers or {}).get(tracing.HEADER)
        shown = visible_arguments(request.kwargs)
        if run is not None:
            shown |= {"job": run.job, "plugin": run.message.plugin, "action": run.message.action}
        attributes: dict[str, str | int | float | bool] = {
            "messaging.system": "celery",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": str((request.delivery_info or {}).get("routing_key")),
            "messaging.message.id": str(request.id),
            "synapse.step": self.name,
            "synapse.redelivered": self.is_redelivered(),
            **{f"synapse.{name}": value for name, value in shown.items()},
        }
        if part:
            attributes["synapse.chunk"] = part
        with tracing.task_span(f"process {self.name}", context, str(shown.get("job", "")), attributes):
            try:
                yield
            except exceptions.TaskPredicate:  # a retry, or another of Celery's signals
                raise
            except Exception as error:
                tracing.fail(type(error).__name__, user_message(error))
                raise

    @staticmethod
    def observe_outcome(timer: metrics.StepTimer, outcome: object) -> None:
        """Say in metrics and in the step's span what follows from it."""
        timer.observe(outcome)
        if tracing.is_enabled():
            name = metrics.OUTCOMES.get(type(outcome).__name__, "other")
            tracing.set_attributes({"synapse.outcome": name})
            if isinstance(outcome, Finish) and outcome.status is JobStatus.FAILED:
                tracing.fail(RunFailedError.__name__, clean(str(outcome.result.get("error", ""))))

    def in_slot(self, function: Callable[[], Retry | None], **changes: bool) -> Callable[[], Retry | None]:
        """For what calls a service and is no step: retried with `changes` while no thread is free for it."""

        def run() -> Retry | None:
            with bulkhead.step() as may_begin:
                if may_begin:
                    return function()
            return Retry(bulkhead.retry_countdown(ALL_STEPS, self.request.retries), changes)

        return run
