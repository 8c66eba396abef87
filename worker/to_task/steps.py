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
"""Opens the window of chunks; what the sweep sends again while chunks are worked."""

ANNOTATE = Step("to_task.annotate", position=60, queue="annotate", has_parts=True)
"""One chunk; its message carries the number as `chunk`."""

FINALIZE = Step("to_task.finalize", position=70)


def message_of(run: Run) -> ToTaskMessage:
    """The run's message; a step of this workflow belongs to no other kind of run."""
    if not isinstance(run.message, ToTaskMessage):
        raise TypeError(f"job {run.job} is no run of to_task")
    return run.message


class TaskFailedError(Exception):
    """The task cannot be annotated; the message becomes its failure record."""


class StillPendingError(Exception):
    """The task's inference runs on; its ticket is asked for again later."""


class StoppedError(Exception):
    """The run has ended: nothing may be annotated any more."""


def may_pass(error: ClientError) -> bool:
    """Whether a later attempt may succeed where this one failed."""
    if isinstance(error, MalformedResponseError):
        return error.cut_off
    return isinstance(error, ClientConnectionError | ClientTimeoutError | RateLimitError | ServerError)
