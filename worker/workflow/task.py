"""The base task of all steps, and how messages become runs."""

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, NoReturn, TypeAlias

import structlog
from celery import Task
from celery.exceptions import Reject, Retry
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from structlog.contextvars import bound_contextvars

from shared.messages import DeployMessage, ToTaskMessage
from shared.statuses import JobStatus
from worker.platform import (
    ClientConnectionError,
    ClientTimeoutError,
    MalformedResponseError,
    RateLimitError,
    ServerError,
    clean,
    shorten,
)
from worker.plugins import PluginHostUnavailableError
from worker.runs.heartbeat import run_member
from worker.runs.keys import lock_key
from worker.runs.model import (
    Acceptance,
    AnyRun,
    ClaimStatus,
    Continue,
    End,
    Finish,
    MessageT,
    Outcome,
    Reschedule,
    Run,
    StateT,
    Step,
    StoredRun,
    Suspend,
    WorkflowStep,
)
from worker.runs.runs import Runs
from worker.services import services
from worker.workflow.dead_letters import reject_message
from worker.workflow.validation import (
    Arguments,
    RejectedMessageError,
    arguments_of,
    check,
    parse,
    readable_job,
)

log = structlog.get_logger(__name__)

StepFunction: TypeAlias = Callable[[Run[MessageT, StateT]], Outcome]

INFRASTRUCTURE_ERRORS: tuple[type[Exception], ...] = (RedisError, OperationalError)
"""Redis or the broker is away, full or read-only: says nothing about the run, so the message comes back."""

MAX_USER_MESSAGE_CHARS = 5_000
"""Characters: it stands in Redis, events, log lines and the job's result. A plugin's error fits in whole."""

MAX_DEPENDENCY_WAIT_SECONDS = 3600.0
"""Seconds for which a step comes back for a neighbour that is away."""


class StepTask(Task):
    """Loads the run, drops out when it is over or further on, holds the step's lock, follows the outcome."""

    abstract = True
    # The contract's doors take what comes and refuse it by name; Celery's check would only fail the task.
    typing = False
    max_retries = None
    Request = "worker.runs.publisher:RedactedRequest"

    transient: ClassVar[tuple[type[Exception], ...]] = ()
    """Errors of a neighbour that may pass: the step comes back later."""

    @staticmethod
    def is_unreachable(error: Exception) -> bool:  # noqa: ARG004 - for workflows to say
        """Whether the neighbour is away altogether: then the step comes back until it is there again."""
        return False

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run. An argument may have any name, also `self`, over which Celery's own call trips."""
        if self.request.called_directly:
            return super().__call__(*args, **kwargs)
        return self.run(*args, **kwargs)

    @property
    def runs(self) -> Runs:
        """The runs of this process."""
        raise NotImplementedError

    def run_step(
        self,
        step: WorkflowStep[MessageT, StateT],
        job: str,
        function: StepFunction[MessageT, StateT],
        *,
        part: str = "",
    ) -> None:
        """Do `step` of the run of `job` by calling `function`."""
        generation = int(self.request.kwargs.get("generation", 0))
        name = f"{step.name}:{part}" if part else step.name
        token = self.runs.locks.new_token()
        redelivered = self.is_redelivered()
        with bound_contextvars(job=job, step=name):
            try:
                begun = self.runs.store.claim_step(
                    job, step, part, token, self.runs.locks.seconds, generation, redelivered
                )
                match begun.status:
                    case ClaimStatus.LOCKED:
                        self.retry_later(1.0, redelivered=redelivered)
                    case ClaimStatus.REPUBLISH:
                        self.retry_later(0.5, generation=begun.generation, redelivered=False)
                    case ClaimStatus.RUN_ENDED:
                        self.runs.ensure_end_reported(job)
                        self._clean_up(job)
                if begun.run is None:
                    return

                def alive() -> None:
                    self.runs.heartbeats.schedule(run_member(job))

                alive()
                with self.runs.locks.hold(lock_key(job, name), token, alive):
                    if not (step.has_parts or begun.run.is_retry):
                        self.runs.events.log.append(job, f"Step {step.name}", "info")
                    self._apply(
                        step,
                        name,
                        begun.run,
                        self._call(name, begun.run, lambda run: function(step.workflow.typed(run))),
                    )
            except INFRASTRUCTURE_ERRORS as error:
                log.warning("step comes back", error_type=type(error).__name__)
                # As after a redelivery, nobody knows how far this one came.
                self.retry_later(1.0, redelivered=True)

    def is_redelivered(self) -> bool:
        """Whether nobody knows how far this message's last delivery came."""
        by_broker = (self.request.delivery_info or {}).get("redelivered")
        return bool(by_broker or self.request.kwargs.get("redelivered"))

    def on_message_after_end(self, job: str) -> None:
        """A step's message arrived after the run's end; a workflow may have something to clean up."""

    def _clean_up(self, job: str) -> None:
        try:
            self.on_message_after_end(job)
        except INFRASTRUCTURE_ERRORS:
            raise
        except self.transient as error:
            self._wait_for_dependency(error)
        except Exception as error:
            log.error(
                "not cleaned up", error_type=type(error).__name__, error=clean(str(error)), exc_info=True
            )

    def retry_later(self, countdown: float, **changed: Any) -> NoReturn:
        """Deliver this message again after `countdown` seconds, with arguments `changed`."""
        kwargs = {**self.request.kwargs, **changed}
        try:
            self.retry(kwargs=kwargs, countdown=min(countdown, self.runs.timing.max_countdown))
        except Retry as again:
            # Without the error for which it comes back: monitors are shown the whole chain.
            raise again from None
        except Reject as reject:
            # The retry could not be published. Celery would drop the message; the broker keeps it instead.
            raise Reject(reject.reason, requeue=True) from None
        raise AssertionError("retry always raises")

    def retry_unclaimed(self, job: str, countdown: float) -> NoReturn:
        """Deliver this message again as it is. Quicker than `Reschedule`: many do so while few have a slot."""
        try:
            self.runs.heartbeats.extend(run_member(job), countdown)
        except INFRASTRUCTURE_ERRORS as error:
            log.warning("step comes back", error_type=type(error).__name__)
        self.retry_later(countdown, redelivered=self.is_redelivered())

    def _call(self, name: str, run: StoredRun, function: Callable[[StoredRun], Outcome]) -> Outcome:
        try:
            return function(run)
        except INFRASTRUCTURE_ERRORS:
            raise
        except self.transient as error:
            return self._wait_for_dependency(error, name, run)
        except Exception as error:
            message = user_message(error)
            log.error("step failed", error=message, error_type=type(error).__name__, exc_info=True)
            return Finish(JobStatus.FAILED, {"error": message})

    def _wait_for_dependency(self, error: Exception, name: str = "", run: AnyRun | None = None) -> Finish:
        attempt = int(self.request.kwargs.get("attempt", 0)) + 1
        longest = self.runs.timing.max_countdown
        if self.is_unreachable(error) or attempt * longest <= MAX_DEPENDENCY_WAIT_SECONDS:
            log.warning(
                "neighbour away", error_type=type(error).__name__, error=clean(str(error)), attempt=attempt
            )
            changed: dict[str, Any] = {"attempt": attempt}
            if run is not None:
                if attempt == 1:
                    why = f"{name} waits: {user_message(error)}"
                    self.runs.events.message(run.job, why, level="warning")
                # A neighbour that hangs holds the step for longer than the visibility timeout: the copies
                # that were delivered meanwhile die, or there would be one more each time.
                generation = self.runs.generations.advance(run.job, name, run.generation)
                changed |= {"generation": generation, "redelivered": False}
            self.retry_later(min(0.5 * 2 ** min(attempt, 20), longest), **changed)
        return Finish(JobStatus.FAILED, {"error": user_message(error)})

    def _apply(self, step: Step, name: str, run: AnyRun, outcome: Outcome) -> None:
        match outcome:
            case Continue():
                kwargs = {"job": run.job, **outcome.kwargs}
                queue = outcome.step.queue or run.queue
                countdown = min(outcome.countdown, self.runs.timing.max_countdown)
                self.runs.heartbeats.schedule(run_member(run.job), countdown)
                self.runs.publisher.publish(outcome.step, queue, kwargs, countdown)
            case Reschedule():
                countdown = min(outcome.countdown, self.runs.timing.max_countdown)
                self.runs.heartbeats.schedule(run_member(run.job), countdown)
                following = self.runs.generations.advance(run.job, name, run.generation)
                self.retry_later(countdown, generation=following, attempt=0, redelivered=False)
            case Finish():
                if self.runs.finish(run.job, End(outcome.status, outcome.result), step):
                    log.info("run ended", status=outcome.status, at=step.name)
            case Suspend():
                pass


def user_message(error: Exception) -> str:
    """What users read of an exception: a RuntimeError speaks for itself, others are named. No secrets."""
    text = clean(str(error))
    if not (isinstance(error, RuntimeError) and text):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return shorten(text, MAX_USER_MESSAGE_CHARS)


MAX_STORE_RETRIES = 60
"""Times that a message comes back for a plugin store that cannot be read."""


class WorkflowTask(StepTask):
    """A step of a workflow, on this process's services."""

    abstract = True
    transient: ClassVar[tuple[type[Exception], ...]] = (
        ClientConnectionError,
        ClientTimeoutError,
        RateLimitError,
        ServerError,
        MalformedResponseError,
        PluginHostUnavailableError,
    )

    @cached_property
    def _arguments(self) -> type[Arguments] | None:
        return arguments_of(self.run)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run, or keep a message whose arguments are none of the step's."""
        try:
            if self._arguments is not None:
                check(self._arguments, args, kwargs)
        except RejectedMessageError as refusal:
            return self.reject(args, kwargs, str(refusal))
        return super().__call__(*args, **kwargs)

    @staticmethod
    def is_unreachable(error: Exception) -> bool:
        """A backend that is down does not fail a run, however long it is."""
        gateway_says_so = isinstance(error, ServerError) and error.status_code in (502, 503, 504)
        return gateway_says_so or isinstance(error, ClientConnectionError | ClientTimeoutError)

    @property
    def runs(self) -> Runs:
        """The runs of this process."""
        return services().runs

    def accept(
        self,
        model: type[DeployMessage] | type[ToTaskMessage],
        first: Step,
        args: tuple[Any, ...],
        kwargs: Any,
    ) -> None:
        """Take a message in: create its run, once, and send its first step; or keep it as a dead letter.

        A message that cannot be looked at now, for Redis, the broker or the plugin store is away, comes back.
        """
        try:
            message = parse(model, args, kwargs, services().store)
            self._accept(message, first)
        except RejectedMessageError as refusal:
            self.reject(args, kwargs, str(refusal))
        except INFRASTRUCTURE_ERRORS as error:
            log.warning("message comes back", error_type=type(error).__name__)
            self.retry_later(1.0)
        except OSError as error:
            if self.request.retries >= MAX_STORE_RETRIES:
                self.reject(args, kwargs, f"the plugin store cannot be read ({type(error).__name__})")
                return
            log.warning("plugin store away", error_type=type(error).__name__)
            self.retry_later(0.5 * 2 ** min(self.request.retries, 10))
        except Exception as error:
            log.error("message not taken in", error_type=type(error).__name__, exc_info=True)
            self.reject(args, kwargs, f"it could not be taken in ({type(error).__name__})")

    def _accept(self, message: DeployMessage | ToTaskMessage, first: Step) -> None:
        queue = _run_queue(message, (self.request.delivery_info or {}).get("routing_key"))
        runs = self.runs
        acceptance = runs.store.accept(message, queue)
        if acceptance is Acceptance.STOPPED:
            runs.ensure_end_reported(message.job)
            return
        # A second delivery may come from a worker that died right here, so the first step is sent again
        # while the run has not begun it. Another message of the same job may be of the other kind, whose
        # steps are none of this run.
        run = runs.store.load(message.job)
        if run.end is not None:
            runs.ensure_end_reported(message.job)
        elif run.position < first.position and run.message.task == message.task:
            self.on_accepted(run.message)
            runs.heartbeats.schedule(run_member(message.job))
            runs.publisher.publish(first, run.queue, {"job": message.job})
        log.info("message taken in", job=message.job, plugin=message.plugin, acceptance=acceptance)

    def on_accepted(self, message: DeployMessage | ToTaskMessage) -> None:
        """The message is the run's that is about to begin; a workflow may have something to say of it."""

    def reject(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> None:
        """Keep the message whole with the reason, and let its job end FAILED if it has no run."""
        log.warning("message refused", reason=reason, refused_job=readable_job(kwargs))
        try:
            reject_message(services(), self.name, [list(args), kwargs], kwargs, reason, self.request.id)
        except INFRASTRUCTURE_ERRORS as error:
            log.warning("refusal comes back", error_type=type(error).__name__)
            self.retry_later(1.0)


def _run_queue(message: DeployMessage | ToTaskMessage, routing_key: Any) -> str:
    """Where the run's steps go: where its message came from, if that is one of the contract's queues.

    Who published says what the routing key is; the steps of a run must not go where nobody listens.
    """
    is_of_agent = isinstance(routing_key, str) and re.fullmatch(
        rf"{message.queue}\.[1-9][0-9]*", routing_key, re.ASCII
    )
    return str(routing_key) if is_of_agent else message.queue
