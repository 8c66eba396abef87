"""The message of a run of `to_task`, as what it is."""

from shared.messages import ToTaskMessage
from worker.runs.model import Run


def message_of(run: Run) -> ToTaskMessage:
    """The run's message; a step of this workflow belongs to no other kind of run."""
    if not isinstance(run.message, ToTaskMessage):
        raise TypeError(f"job {run.job} is no run of to_task")
    return run.message
