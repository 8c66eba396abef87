"""The steps of a run of `to_task`, its message, and the reasons why a task is not annotated."""

from shared.messages import ToTaskMessage
from worker.platform import (
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    MalformedResponseError,
    RateLimitError,
    ServerError,
)
from worker.pre_processor.waitlist import FETCH_TASKS as FETCH_TASKS  # declared where runs are resumed to it
from worker.runs.model import Run, Step

INITIALIZE = Step("to_task.initialize", position=10)
PREPARE = Step("to_task.prepare", position=20)

SPREAD = Step("to_task.spread", position=60)
"""Publishes the first chunks; the sweep repeats this step while chunks are in flight."""

ANNOTATE = Step("to_task.annotate", position=60, queue="annotate", has_parts=True)
"""One chunk; its message carries the number as `chunk`."""

FINALIZE = Step("to_task.finalize", position=70)


def message_of(run: Run) -> ToTaskMessage:
    """The run's message; raises `TypeError` for a run of another kind."""
    if not isinstance(run.message, ToTaskMessage):
        raise TypeError(f"job {run.job} is no run of to_task")
    return run.message


class TaskFailedError(Exception):
    """The task cannot be annotated; the message becomes its failure record."""


class InferencePendingError(Exception):
    """The task's inference is running; its ticket is polled again later."""


class RunEndedError(Exception):
    """The run has ended, so nothing may be annotated any more."""


def is_transient(error: ClientError) -> bool:
    """Whether a later attempt may succeed."""
    if isinstance(error, MalformedResponseError):
        return error.cut_off
    return isinstance(error, ClientConnectionError | ClientTimeoutError | RateLimitError | ServerError)
