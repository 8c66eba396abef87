"""What a step's function can say comes next."""

from dataclasses import dataclass, field
from typing import Any

from shared.statuses import JobStatus


@dataclass(frozen=True)
class Step:
    """A step of a workflow.

    `position` orders the steps of a run. `queue` is where its messages go; None is the queue on which the
    run's own message came in. A step with parts (the chunks of an annotation) does not move the run on.
    """

    name: str
    position: int
    queue: str | None = None
    has_parts: bool = False


@dataclass(frozen=True)
class Continue:
    """The step is done; `step` comes next, after `countdown` seconds."""

    step: Step
    kwargs: dict[str, Any] = field(default_factory=dict)
    countdown: float = 0.0


@dataclass(frozen=True)
class PollAgain:
    """The same step again after `countdown` seconds."""

    countdown: float


@dataclass(frozen=True)
class Finish:
    """The run ends."""

    status: JobStatus
    result: dict[str, Any]


@dataclass(frozen=True)
class Park:
    """Somebody else will send the run's next message: a waiting room, or the last chunk."""


Outcome = Continue | PollAgain | Finish | Park


class RunFailedError(RuntimeError):
    """Ends the run FAILED with exactly this message, which users read."""
