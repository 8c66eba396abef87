"""What the workflows share: their base task, their door, their first step."""

from collections.abc import Mapping
from typing import Any, ClassVar

import structlog
from pydantic import TypeAdapter, ValidationError

from shared.messages import DeployMessage, Job, Tenant, ToTaskMessage
from shared.statuses import JobStatus
from worker.broker import RefusedMessage, message_refused
from worker.dead_letters import DeadLetters
from worker.platform import (
    ClientConnectionError,
    ClientTimeoutError,
    MalformedResponseError,
    NotFoundError,
    RateLimitError,
    ServerError,
    clean,
)
from worker.plugins import PluginError, PluginHostUnavailableError
from worker.runs.live import run_member
from worker.runs.outcomes import Step
from worker.runs.record import Acceptance, End, Run
from worker.runs.runs import Runs
from worker.runs.step_task import BACKBONE_ERRORS, StepTask
from worker.services import services

log = structlog.get_logger(__name__)

REFUSE_JOB = Step("runs.refuse_job", position=0, queue="control")
"""Tells the backend that a job's message could not be accepted."""


MOST_LOOKS_AT_STORE = 60
"""Times that a message comes back for a plugin store that cannot be read."""

MOST_MISTAKES = 20
LONGEST_NAME = 100
"""Of what is wrong with a message, which may have a hundred thousand wrong keys of any length."""

RUN_TASKS = (DeployMessage.task, ToTaskMessage.task)


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

    @staticmethod
    def is_down(error: Exception) -> bool:
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
            message = parse(model, args, kwargs)
            self._take_in(message, first)
        except RefusedMessageError as refusal:
            self.refuse(args, kwargs, str(refusal))
        except BACKBONE_ERRORS as error:
            log.warning("message comes back", error_type=type(error).__name__)
            self.come_back(1.0)
        except OSError as error:
            if self.request.retries >= MOST_LOOKS_AT_STORE:
                self.refuse(args, kwargs, f"the plugin store cannot be read ({type(error).__name__})")
                return
            log.warning("plugin store away", error_type=type(error).__name__)
            self.come_back(0.5 * 2 ** min(self.request.retries, 10))

    def _take_in(self, message: DeployMessage | ToTaskMessage, first: Step) -> None:
        queue = (self.request.delivery_info or {}).get("routing_key") or message.queue
        runs = self.runs
        acceptance = runs.store.accept(message, queue)
        if acceptance is Acceptance.STOPPED:
            runs.report_end(message.job)
            return
        # A second delivery may come from a worker that died right here, so the first step is sent again
        # while the run has not begun it.
        run = runs.store.load(message.job)
        if run.end is not None:
            runs.report_end(message.job)
        elif run.position < first.position:
            runs.live.expect(run_member(message.job))
            runs.sender.send(first, queue, {"job": message.job})
        log.info("message taken in", job=message.job, plugin=message.plugin, acceptance=acceptance)

    def refuse(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> None:
        """Keep the message whole with the reason, and let its job end FAILED if it has no run."""
        log.warning("message refused", reason=reason, refused_job=readable_job(kwargs))
        try:
            keep_refused(self.name, [list(args), kwargs], kwargs, reason, self.request.id)
        except BACKBONE_ERRORS as error:
            log.warning("refusal comes back", error_type=type(error).__name__)
            self.come_back(1.0)


def keep_refused(task: str, body: Any, kwargs: Any, reason: str, message_id: str | None) -> None:
    """Keep a message whole with the reason, and let its job end FAILED if it has no run."""
    DeadLetters(services().redis).add(task, body, reason, message_id=message_id)
    job = readable_job(kwargs) if task in RUN_TASKS and isinstance(kwargs, dict) else None
    runs = services().runs
    if job is not None and not runs.store.exists(job):
        about = {"job": job, "reason": reason, "tenant": readable_tenant(kwargs)}
        runs.sender.send(REFUSE_JOB, "control", about)


@message_refused.connect
def _keep_unread(refused: RefusedMessage, **_: Any) -> None:
    """A message that reached no task: the broker's consumer or transport could not take it."""
    keep_refused(refused.task, refused.body, refused.kwargs, refused.reason, refused.message_id)


class RefusedMessageError(ValueError):
    """A message that cannot be accepted; the text says why, without what the message holds."""


def parse(
    model: type[DeployMessage] | type[ToTaskMessage], args: tuple[Any, ...], kwargs: Any
) -> DeployMessage | ToTaskMessage:
    """Check a message and that its release and action exist; raises `RefusedMessageError`."""
    if args:
        raise RefusedMessageError("arguments must be sent by name")
    try:
        message = model.model_validate(kwargs)
    except ValidationError as error:
        raise RefusedMessageError(mistakes(error)) from None
    try:
        services().store.get(message.plugin).action(message.action)
    except PluginError as error:
        raise RefusedMessageError(clean(str(error))) from None
    except OSError:
        raise  # The store is away, which says nothing about the message.
    except Exception as error:
        log.error("release not read", plugin=message.plugin, exc_info=True)
        raise RefusedMessageError(clean(f"{type(error).__name__}: {error}")) from None
    return message


def mistakes(error: ValidationError) -> str:
    """Where and what is wrong, in one line, without what the message holds."""
    found = error.errors(include_input=False, include_url=False, include_context=False)
    lines = []
    for mistake in found[:MOST_MISTAKES]:
        where = ".".join(str(part)[:LONGEST_NAME] for part in mistake["loc"])
        lines.append(f"{where}: {mistake['msg']}" if where else mistake["msg"])
    if len(found) > MOST_MISTAKES:
        lines.append(f"and {len(found) - MOST_MISTAKES} more")
    return clean("; ".join(lines))[:2000]


_JOB: TypeAdapter[str] = TypeAdapter(Job)
_TENANT: TypeAdapter[str] = TypeAdapter(Tenant)


def readable_job(kwargs: Any) -> str | None:
    """The job of a message that is otherwise wrong."""
    try:
        return str(_JOB.validate_python(kwargs.get("job")))
    except ValidationError:
        return None


def readable_tenant(kwargs: Any) -> str | None:
    """The tenant of a message that is otherwise wrong."""
    try:
        return _TENANT.validate_python(kwargs.get("tenant"))
    except ValidationError:
        return None


REOPENED = "reopened"
"""Finding: the backend's FAILED was a refusal of an earlier message of this job."""


def begin_run(run: Run) -> bool:
    """The first step's common part: false when the backend says that the job is over, so nothing starts.

    A job that is FAILED only because a message of it was refused is opened again when that one is replayed.
    """
    runs = services().runs
    try:
        status = status_of(services().backend(run.message.tenant).get_job(run.job))
    except NotFoundError:
        runs.events.message(run.job, "The backend does not know this job.", level="warning")
        status = None
    if status is not None and status.is_final and not _may_reopen(run, status):
        log.info("job is over already", status=status)
        # Sealed first: whoever dies in between must not report an end that is the backend's own.
        runs.store.seal(run.job)
        runs.store.finish(run.job, End(status, {}))
        runs.live.forget(run_member(run.job))
        return False
    runs.start(run)
    runs.advance(run, "initialize", 100)
    return True


def status_of(job: Mapping[str, Any]) -> JobStatus | None:
    """The status in the backend's answer; None for a word that is not known here, which is no end."""
    status = job.get("status")
    if not isinstance(status, str):
        raise MalformedResponseError("malformed answer: a job without a status")
    return JobStatus(status) if status in set(JobStatus) else None


def _may_reopen(run: Run, status: JobStatus) -> bool:
    if status is not JobStatus.FAILED:
        return False
    letters = DeadLetters(services().redis)
    if letters.is_replayed(run.job):
        services().runs.store.note(run.job, REOPENED, True)
        letters.forget(run.job)
        return True
    return bool(run.findings.get(REOPENED))
