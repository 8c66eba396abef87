"""What the workflows share: their base task, their door, their first step."""

from typing import Any, ClassVar

import structlog
from pydantic import TypeAdapter, ValidationError

from shared.messages import DeployMessage, Job, ToTaskMessage
from shared.statuses import JobStatus
from worker.dead_letters import DeadLetters
from worker.platform import (
    ClientConnectionError,
    ClientTimeoutError,
    NotFoundError,
    RateLimitError,
    ServerError,
)
from worker.plugins import PluginError, PluginHostUnavailableError
from worker.runs.live import run_member
from worker.runs.outcomes import Step
from worker.runs.record import Acceptance, End, Run
from worker.runs.runs import Runs
from worker.runs.step_task import StepTask
from worker.services import services

log = structlog.get_logger(__name__)

REFUSE_JOB = Step("runs.refuse_job", position=0, queue="control")
"""Tells the backend that a job's message could not be accepted."""


RUN_TASKS = (DeployMessage.task, ToTaskMessage.task)


class WorkflowTask(StepTask):
    """A step of a workflow, on this process's services."""

    abstract = True
    transient: ClassVar[tuple[type[Exception], ...]] = (
        ClientConnectionError,
        ClientTimeoutError,
        RateLimitError,
        ServerError,
        PluginHostUnavailableError,
    )

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
        """Take a message in: create its run, once, and send its first step; or keep it as a dead letter."""
        try:
            message = parse(model, args, kwargs)
        except RefusedMessageError as refusal:
            self.refuse(args, kwargs, str(refusal))
            return
        queue = (self.request.delivery_info or {}).get("routing_key") or model.queue
        runs = self.runs
        acceptance = runs.store.accept(message, queue)
        if acceptance is Acceptance.STOPPED:
            runs.report_end(message.job)
            return
        # A second delivery may come from a worker that died right here, so the first step is sent again
        # while the run has not begun it.
        if runs.store.load(message.job).position < first.position:
            runs.live.expect(run_member(message.job))
            runs.sender.send(first, queue, {"job": message.job})
        log.info("message taken in", job=message.job, plugin=message.plugin, acceptance=acceptance)

    def refuse(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> None:
        """Keep the message whole with the reason, and let its job end FAILED if it has no run."""
        log.warning("message refused", reason=reason, **{"refused_job": str(kwargs.get("job"))[:100]})
        DeadLetters(services().redis).add(self.name, [list(args), kwargs], reason, message_id=self.request.id)
        job = readable_job(kwargs) if self.name in RUN_TASKS else None
        if job is not None and not self.runs.store.exists(job):
            self.runs.sender.send(REFUSE_JOB, "control", {"job": job, "reason": reason})


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
        lines = (f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors())
        raise RefusedMessageError("; ".join(lines)[:2000]) from None
    try:
        services().store.get(message.plugin).action(message.action)
    except PluginError as error:
        raise RefusedMessageError(str(error)) from None
    return message


_JOB: TypeAdapter[str] = TypeAdapter(Job)


def readable_job(kwargs: Any) -> str | None:
    """The job of a message that is otherwise wrong."""
    try:
        return str(_JOB.validate_python(kwargs.get("job")))
    except ValidationError:
        return None


def begin_run(run: Run) -> bool:
    """The first step's common part: false when the backend says that the job is over, so nothing starts."""
    runs = services().runs
    try:
        status = JobStatus(services().backend(run.message.tenant).get_job(run.job)["status"])
    except NotFoundError:
        runs.events.message(run.job, "The backend does not know this job.", level="warning")
        status = JobStatus.PENDING
    if status.is_final and not run.again:
        log.info("job is over already", status=status)
        runs.store.finish(run.job, End(status, {}))
        runs.store.seal(run.job)
        runs.live.forget(run_member(run.job))
        return False
    runs.start(run)
    runs.advance(run, "initialize", 100)
    return True
