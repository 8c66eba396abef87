"""The base class of all Celery tasks: claims, locks, retries, and what follows from the outcome of a step."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, NoReturn, TypeAlias, TypeVar

import structlog
from celery import exceptions
from pydantic import BaseModel
from structlog.contextvars import bound_contextvars

from shared.channels import job_key
from shared.messages import DeployMessage, ToTaskMessage
from shared.statuses import JobStatus
from worker import blame, metrics, tracing
from worker.blame import INFRASTRUCTURE_ERRORS, RejectedMessageError, Retries
from worker.broker import RejectedMessage
from worker.platform import clean
from worker.plugins import RunEndedError, waits_for_run
from worker.runs.bulkhead import ALL_STEPS, backoff, bulkhead
from worker.runs.generations import GenerationClaim
from worker.runs.heartbeat import run_member
from worker.runs.locks import step_lease
from worker.runs.model import (
    AnyRun,
    ClaimStatus,
    Continue,
    ContinueInParts,
    DamagedRunError,
    End,
    Finish,
    Lease,
    MessageT,
    Outcome,
    Reschedule,
    Run,
    RunFailedError,
    StateT,
    Step,
    StoredRun,
    UnreadableRunError,
    WorkflowStep,
)
from worker.runs.runs import MAX_UNREADABLE_SECONDS, Runs
from worker.runs.store import StepClaim
from worker.services import services
from worker.workflow import intake
from worker.workflow.dead_letters import body_text
from worker.workflow.deaths import DEATHS_ADVICE, MAX_DEATHS, DeathCountingTask
from worker.workflow.delivery import (
    INFRASTRUCTURE_RETRY_SECONDS,
    MAX_DEPENDENCY_WAIT_SECONDS,
    NEWER_HEADER,
    REJECTED_TEXT,
    Retry,
    user_message,
)
from worker.workflow.rejected_jobs import reject_message
from worker.workflow.texts import Text, in_language
from worker.workflow.validation import Arguments, arguments_of, parse, parse_message, readable_job

log = structlog.get_logger(__name__)

StepFunction: TypeAlias = Callable[[Run[MessageT, StateT]], Outcome]
ModelT = TypeVar("ModelT", bound=BaseModel)
EntryModel: TypeAlias = type[DeployMessage] | type[ToTaskMessage]

NEWER_RUN_SECONDS = 5.0
"""Delay of the message of a run that only newer workers of the fleet understand."""
LOCKED_SECONDS = 1.0
"""Delay of a step whose lock is held by another delivery."""
REPUBLISH_SECONDS = 0.5
ABANDONED_SECONDS = 1.0
"""Delay of a step that its run's end has interrupted; what it called has been cancelled by then."""


class StepTask(DeathCountingTask):
    """A Celery task: a step of a run (`run_step`), an entry task, or another task (`run_task`)."""

    abstract = True
    # Entry tasks accept any arguments and reject wrong ones by name; Celery's check would only fail the task.
    typing = False
    max_retries = None
    Request = "worker.workflow.revocations:StepRequest"

    @property
    def runs(self) -> Runs:
        """The runs of this process."""
        return services().runs

    @cached_property
    def _arguments(self) -> type[Arguments] | None:
        return arguments_of(self.run)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run, or keep a message as a dead letter whose arguments are not the step's.

        An argument may have any name, also `self`, which Celery's own call cannot pass on.
        """
        try:
            if self._arguments is not None:
                parse_message(self._arguments, args, kwargs)
        except RejectedMessageError as rejection:
            self.reject(args, kwargs, str(rejection))
        if self.request.called_directly:
            return super().__call__(*args, **kwargs)
        try:
            return self.run(*args, **kwargs)
        except UnreadableRunError as error:
            # Entry tasks have no arguments but those of their message.
            changes = {} if self._arguments is None else {"redelivered": self.is_redelivered()}
            waited = self.waited_seconds(NEWER_HEADER)
            if isinstance(error, DamagedRunError) or waited >= MAX_UNREADABLE_SECONDS:
                self._give_up_unreadable(args, kwargs, str(error))
            log.warning("step of a newer release requeued", job=readable_job(kwargs))
            self.retry_later(NEWER_RUN_SECONDS, newer_seconds=waited + NEWER_RUN_SECONDS, **changes)

    def _give_up_unreadable(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> NoReturn:
        """Keep the message as a dead letter, and end the run if the message is that of a step.

        The record does not say whether newer workers go on with the run, as each claim changes it. But of a
        day's thousands of deliveries, one would have been theirs.
        """
        self._keep_rejected(args, kwargs, reason)
        if self._arguments is not None and (job := readable_job(kwargs)) is not None:
            self._end_unusable_run(job, reason)
        raise RejectedMessageError(reason) from None

    def _end_unusable_run(self, job: str, reason: str) -> None:
        try:
            has_failed = self.runs.finish(job, End(JobStatus.FAILED, {"error": reason}))
        except INFRASTRUCTURE_ERRORS as error:
            if blame.in_step(error).retries is Retries.UNLIMITED:
                self.retry_later(INFRASTRUCTURE_RETRY_SECONDS, redelivered=True)
            # Not even the end can be written. The message says what was to be done.
            self.reject((), self.request.kwargs, reason)
        if has_failed:
            raise RunFailedError(reason) from None

    # Steps of runs

    def run_step(
        self,
        step: WorkflowStep[MessageT, StateT],
        job: str,
        function: StepFunction[MessageT, StateT],
        *,
        part: str = "",
    ) -> None:
        """Claim `step` of the run of `job`, call `function` under its lock, and apply the outcome.

        `part` is a part of the step that has a lock and generations of its own, such as a chunk.
        """
        generation = int(self.request.kwargs.get("generation", 0))
        name = f"{step.name}:{part}" if part else step.name
        lease = step_lease(job, name, self.runs.locks.new_token())
        redelivered = self.is_redelivered()
        timer = metrics.StepTimer(step.name)
        with bound_contextvars(job=job, step=name), bulkhead.step() as may_begin:
            if not may_begin:
                self.retry_unclaimed(job, bulkhead.retry_countdown(ALL_STEPS, self.request.retries))
            try:
                claim = self._claim(job, step, part, lease, generation, redelivered)
                match claim.status:
                    case ClaimStatus.LOCKED:
                        self.retry_later(LOCKED_SECONDS, redelivered=redelivered)
                    case ClaimStatus.REPUBLISH:
                        self.retry_later(REPUBLISH_SECONDS, generation=claim.generation, redelivered=False)
                    case ClaimStatus.RUN_ENDED:
                        self.runs.ensure_end_reported(job)
                        self._clean_up(job)
                        self.retry_as(self._earlier_failure(job, name) if redelivered else None)
                    case ClaimStatus.UNKNOWN:
                        log.warning("step of an unknown run dropped")
                if claim.run is None:
                    return

                def renew() -> None:
                    self.runs.heartbeats.renew(run_member(job))

                has_ended = partial(self.runs.is_known_to_have_ended, job)
                is_released, retry = False, None
                try:
                    renewing = self.runs.locks.renewing(lease, renew)
                    with self.traced(claim.run, part), renewing, waits_for_run(has_ended):
                        end = self.end_after_deaths(name, job, claim.died)
                        call = end or self._call(
                            name, claim.run, lambda run: function(step.workflow.typed(run))
                        )
                        is_released, retry = self._apply(step, name, claim.run, call)
                        self.observe_outcome(timer, call)
                finally:
                    if not is_released:
                        self.runs.locks.release(lease)
                self.retry_as(retry)
            except INFRASTRUCTURE_ERRORS as error:
                log.warning("step retry scheduled", error_type=type(error).__name__)
                # As after a redelivery, it is unknown how far this delivery came.
                self.retry_for_infrastructure(error, redelivered=True)
                self._end_unusable_run(job, f"{REJECTED_TEXT}: {user_message(error)}")

    def _claim(
        self, job: str, step: Step, part: str, lease: Lease, generation: int, redelivered: bool
    ) -> StepClaim:
        locks = self.runs.locks
        try:
            locks.release_overdue()
            return self.runs.store.claim_step(
                job, step, part, lease.token, locks.seconds, generation, redelivered
            )
        except INFRASTRUCTURE_ERRORS:
            # Only the answer may be lost, and the step claimed.
            locks.release_later(lease)
            raise

    def on_message_after_end(self, job: str) -> None:
        """A step's message arrived after the run's end; a workflow may have something to clean up."""

    def retry_unclaimed(self, job: str, countdown: float) -> NoReturn:
        """Deliver this message again as it is, before its step was claimed.

        Cheaper than `Reschedule`, for many messages are retried while few have a slot of the bulkhead.
        """
        try:
            self.runs.heartbeats.extend(run_member(job), countdown)
        except INFRASTRUCTURE_ERRORS as error:
            log.warning("heartbeat not extended", error_type=type(error).__name__)
        self.retry_later(countdown, redelivered=self.is_redelivered())

    def _call(self, name: str, run: StoredRun, function: Callable[[StoredRun], Outcome]) -> Outcome | Retry:
        try:
            return function(run)
        except INFRASTRUCTURE_ERRORS:
            raise
        except RunEndedError:
            # The next delivery reports the end and cleans up.
            return self.retry_later(ABANDONED_SECONDS)
        except Exception as error:
            retries = blame.in_step(error).retries
            metrics.count_failure(name.partition(":")[0], type(error).__name__, retries)
            if retries is not Retries.NONE:
                return self._wait_for_dependency(error, name, run)
            message = user_message(error)
            is_bug = not isinstance(error, RunFailedError)
            log.error("step failed", error=message, error_type=type(error).__name__, exc_info=is_bug)
            return Finish(JobStatus.FAILED, {"error": message})

    def _wait_for_dependency(
        self, error: Exception, name: str = "", run: AnyRun | None = None
    ) -> Finish | Retry:
        attempt = int(self.request.kwargs.get("attempt", 0)) + 1
        max_countdown = self.runs.timing.max_countdown
        is_limited = blame.in_step(error).retries is not Retries.UNLIMITED
        waited = self.waited_seconds()
        if is_limited and waited >= MAX_DEPENDENCY_WAIT_SECONDS:
            return Finish(JobStatus.FAILED, {"error": user_message(error)})
        asked = blame.retry_after_seconds(error) or 0.0
        countdown = max(backoff(attempt, max_countdown), asked)
        log.warning(
            "dependency unavailable",
            error_type=type(error).__name__,
            error=clean(str(error)),
            attempt=attempt,
        )
        tracing.fail(type(error).__name__, user_message(error))
        if run is not None and attempt == 1:
            text = in_language(run.message.language, Text.STEP_WAITS, step=name, error=user_message(error))
            self.runs.events.message(run.job, text, level="warning")
        waited += countdown if is_limited else 0.0
        return Retry(countdown, {"attempt": attempt}, is_asked_for=True, waited_seconds=waited)

    def _apply(
        self, step: Step, name: str, run: AnyRun, outcome: Outcome | Retry
    ) -> tuple[bool, Retry | exceptions.Retry | RunFailedError | None]:
        """Whether the step's lock is released by that, and what `retry_as` is to do with its message."""
        match outcome:
            case Continue() | ContinueInParts():
                return self.runs.continue_with(run, outcome), None
            case Reschedule():
                metrics.count_poll(step.name)
                return True, self.reschedule(run, name, Retry.after(outcome))
            case Retry():
                return True, self.reschedule(run, name, outcome)
            case Finish():
                if self.runs.finish(run.job, End(outcome.status, outcome.result), step):
                    log.info("run ended", status=outcome.status, at=step.name)
                    if outcome.status is JobStatus.FAILED:
                        return False, RunFailedError(outcome.result.get("error", ""))
        return False, None

    def _earlier_failure(self, job: str, name: str) -> RunFailedError | None:
        """What to raise where an earlier delivery of this step ended the run FAILED, and died right then."""
        step, status, error = self.runs.redis.hmget(job_key(job), ["step", "status", "error"])
        return RunFailedError(error or "") if (step, status) == (name, JobStatus.FAILED) else None

    def _clean_up(self, job: str) -> None:
        try:
            self.on_message_after_end(job)
        except Exception as error:
            if isinstance(error, (*INFRASTRUCTURE_ERRORS, UnreadableRunError)):
                raise
            if blame.in_step(error).retries is not Retries.NONE:
                self.retry_as(self._wait_for_dependency(error))
            log.error(
                "clean-up failed", error_type=type(error).__name__, error=clean(str(error)), exc_info=True
            )

    # Other tasks

    def run_task(
        self,
        function: Callable[[], Retry | None],
        *,
        lock: str | None = None,
        locked_seconds: float = REPUBLISH_SECONDS,
        calls_service: bool = False,
    ) -> None:
        """Call `function` for a task that is not a step of a run, under the lock of that key if one is given.

        The message is retried as `function` says, after `locked_seconds` while another delivery holds the
        lock, while Redis or the broker is unavailable, and while no thread is free if it `calls_service`.
        """

        def run() -> Retry | None:
            if lock is None:
                return function()
            return self._run_locked(lambda _: function(), lock, Retry(locked_seconds))

        self._retry_as_asked(self.in_slot(run) if calls_service else run, {})

    def run_poll(
        self,
        claim: Callable[[int, bool], GenerationClaim],
        function: Callable[[int, Lease], Retry | None],
        *,
        lock: str,
        locked_seconds: float = REPUBLISH_SECONDS,
    ) -> None:
        """Claim the generation of a poll that is not a step of a run, and call `function` under the lock.

        `claim` gets the generation of the message and whether it is redelivered; `function` gets the claimed
        generation and the lock. The message is retried as by `run_task`; a superseded one does nothing.
        """
        generation = int(self.request.kwargs.get("generation", 0))
        redelivered = self.is_redelivered()

        def poll() -> Retry | None:
            claimed = claim(generation, redelivered)
            match claimed.status:
                case ClaimStatus.SUPERSEDED:
                    return None
                case ClaimStatus.REPUBLISH:
                    return Retry(locked_seconds, {"generation": claimed.generation, "redelivered": False})
            metrics.count_poll(self.name)
            locked = Retry(locked_seconds, {"generation": claimed.generation, "redelivered": redelivered})
            return self._run_locked(lambda lease: function(claimed.generation, lease), lock, locked)

        # When Redis was away during this delivery, it is unknown how far it came.
        self._retry_as_asked(self.in_slot(poll, redelivered=redelivered), {"redelivered": True})

    def _run_locked(
        self, function: Callable[[Lease], Retry | None], lock: str, retry_when_locked: Retry
    ) -> Retry | None:
        lease = Lease(lock, self.runs.locks.new_token())
        if not self.runs.locks.acquire(lease.key, lease.token):
            return retry_when_locked
        with self.runs.locks.hold(lease):
            return function(lease)

    def _retry_as_asked(
        self, function: Callable[[], Retry | None], changes_without_redis: Mapping[str, int | bool]
    ) -> None:
        with self.traced():
            try:
                retry = function()
            except INFRASTRUCTURE_ERRORS as error:
                log.warning("task retry scheduled", error_type=type(error).__name__)
                self.retry_for_infrastructure(error, **changes_without_redis)
                # What the sweep publishes again needs no copy.
                retry = None
                if self._arguments is None:
                    self.reject(tuple(self.request.args or ()), self.request.kwargs, REJECTED_TEXT)
            self.retry_as(retry)

    # Entry tasks

    def parse(self, model: type[ModelT], args: tuple[Any, ...], kwargs: dict[str, Any]) -> ModelT:
        """The message of an entry task, which is kept as a dead letter when it is not accepted."""
        try:
            return parse_message(model, args, kwargs)
        except RejectedMessageError as rejection:
            self.reject(args, kwargs, str(rejection))

    def accept(self, model: EntryModel, first: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Accept a message: create its run, once, and publish its first step; or keep it as a dead letter.

        It is retried while Redis, the broker or the plugin store is unavailable.
        """
        with self.traced(), self.counting_deaths() as died:
            if died >= MAX_DEATHS:
                self.reject(args, kwargs, f"{died} workers died while it was read; {DEATHS_ADVICE}")
            else:
                self._accept(model, first, args, kwargs)

    def _accept(self, model: EntryModel, first: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        routing_key = (self.request.delivery_info or {}).get("routing_key")
        try:
            message = parse(model, args, kwargs, services().store)
            intake.accept_message(message, first, routing_key, self.runs, self.priority, self.on_accepted)
        except RejectedMessageError as rejection:
            self.reject(args, kwargs, str(rejection))
        except INFRASTRUCTURE_ERRORS as error:
            log.warning("message retry scheduled", error_type=type(error).__name__)
            self.retry_for_infrastructure(error)
            self.reject(args, kwargs, f"{REJECTED_TEXT} ({type(error).__name__})")
        except UnreadableRunError:
            raise
        except Exception as error:
            name, retries = type(error).__name__, blame.in_message(error).retries
            if retries is Retries.NONE:
                log.error("message not accepted", error_type=name, exc_info=True)
                self.reject(args, kwargs, f"it could not be taken in ({name})")
            waited = self.waited_seconds()
            if retries is Retries.HOUR and waited >= MAX_DEPENDENCY_WAIT_SECONDS:
                self.reject(args, kwargs, f"the plugin store cannot be read ({name})")
            log.warning("plugin store unavailable", error_type=name)
            countdown = backoff(self.request.retries, self.runs.timing.max_countdown)
            waited += countdown if retries is Retries.HOUR else 0.0
            self.retry_later(countdown, waited_seconds=waited)

    def on_accepted(self, message: DeployMessage | ToTaskMessage) -> None:
        """A run of this message is about to begin; a workflow may have something to do first."""

    def reject(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> NoReturn:
        """Keep the message whole, let its job end FAILED if it has no run, and raise the reason."""
        self._keep_rejected(args, kwargs, reason)
        raise RejectedMessageError(reason) from None

    def _keep_rejected(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> None:
        log.warning("message rejected", reason=reason, rejected_job=readable_job(kwargs, args))
        body = body_text([list(args), kwargs])
        try:
            reject_message(
                services(), RejectedMessage(self.name, body, reason, self.request.id, kwargs, args)
            )
        except INFRASTRUCTURE_ERRORS as error:
            log.warning("rejection retry scheduled", error_type=type(error).__name__)
            self.retry_later(INFRASTRUCTURE_RETRY_SECONDS)
