"""What cannot be accepted is kept whole with the reason, and its job is told."""

from typing import Any

from shared.messages import DeployMessage, ToTaskMessage
from worker.broker import RefusedMessage, message_refused
from worker.dead_letters import DeadLetters
from worker.runs.model import Step
from worker.services import Services, services
from worker.workflow.reading import readable_job, readable_tenant

REFUSE_JOB = Step("runs.refuse_job", position=0, queue="control")
"""Tells the backend that a job's message could not be accepted."""

RUN_TASKS = (DeployMessage.task, ToTaskMessage.task)


def keep_refused(
    services: Services, task: str, body: Any, kwargs: Any, reason: str, message_id: str | None
) -> None:
    """Keep a message whole with the reason, and let its job end FAILED if it has no run."""
    job = readable_job(kwargs) if task in RUN_TASKS and isinstance(kwargs, dict) else None
    runs = services.runs
    if job is not None and runs.store.exists(job):
        job = None
    DeadLetters(services.redis).add(task, body, reason, message_id=message_id, job=job)
    if job is not None:
        about = {"job": job, "reason": reason, "tenant": readable_tenant(kwargs)}
        runs.sender.send(REFUSE_JOB, "control", about)


@message_refused.connect
def _keep_unread(refused: RefusedMessage, **_: Any) -> None:
    """A message that reached no task: the broker's consumer or transport could not take it."""
    keep_refused(services(), refused.task, refused.body, refused.kwargs, refused.reason, refused.message_id)
