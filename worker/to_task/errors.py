"""Why a task is not annotated: for good, or not yet."""

from worker.platform import (
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    MalformedResponseError,
    RateLimitError,
    ServerError,
)


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
