"""A run as a step sees it, workflows and their steps, and what a step's function can say comes next."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from types import UnionType
from typing import Generic, TypeAlias, TypeVar

from shared.channels import RETENTION_SECONDS
from shared.messages import DeployMessage, JsonObject, ToTaskMessage
from shared.statuses import JobStatus
from worker.runs.keys import STEP_TIME_PREFIX
from worker.runs.state import RunState, StoredState

RunMessage = DeployMessage | ToTaskMessage

MessageT = TypeVar("MessageT", bound=RunMessage, covariant=True)
StateT = TypeVar("StateT", bound=RunState, covariant=True)


@dataclass(frozen=True)
class Step:
    """Where the messages of a step go, and its place among the steps of a run.

    `position` orders the steps. `queue` is where its messages go; None is the queue on which the run's own
    message arrived. A step with parts (the chunks of an annotation) does not move the run on.
    """

    name: str
    position: int
    queue: str | None = None
    has_parts: bool = False


@dataclass(frozen=True)
class BegunStep:
    """A step that a run has begun, and when, in seconds since the epoch on Redis's clock.

    `since` is None where a worker of an older release began it, which keeps no times.
    """

    name: str
    since: float | None


def begun_steps(record: Mapping[str, str]) -> list[BegunStep]:
    """The steps of a run in their order, from its public record; empty where nothing is kept of them."""
    started, found = finite_number(record.get("started")) or 0.0, []
    for name, text in record.items():
        milliseconds = finite_number(text) if name.startswith(STEP_TIME_PREFIX) else None
        if milliseconds is not None:
            found.append((abs(milliseconds), milliseconds >= 0, name.removeprefix(STEP_TIME_PREFIX)))
    steps = [
        BegunStep(name, started + milliseconds / 1000 if is_known else None)
        for milliseconds, is_known, name in sorted(found)
    ]
    present = record.get("step")
    if steps and present and present not in {step.name for step in steps}:
        steps.append(BegunStep(present, None))
    return steps


def finite_number(text: str | None) -> float | None:
    """The number that a text states; None where it states none, or one that is not finite."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class Continue:
    """The step is done; `step` comes next, after `countdown` seconds."""

    step: Step
    kwargs: Mapping[str, object] = field(default_factory=dict)
    countdown: float = 0.0


@dataclass(frozen=True)
class ContinueInParts:
    """The messages of all `parts` are published, and the run stands at `step`, which has none of its own.

    The last part publishes what follows. The sweep publishes `step`, which must publish again what is left.
    """

    step: Step
    parts: Sequence[Continue]


@dataclass(frozen=True)
class Reschedule:
    """The same step is repeated after `countdown` seconds, as a poll of the next generation.

    `is_asked_for`: a service asks for this wait, which may be longer than a countdown of the worker's own.
    `keeps_retries`: the step had no slot and tried nothing, so how often and for how long it was retried for
    a dependency stays. Else the count begins anew.
    """

    countdown: float
    is_asked_for: bool = False
    keeps_retries: bool = False


@dataclass(frozen=True)
class Finish:
    """The run ends."""

    status: JobStatus
    result: JsonObject


@dataclass(frozen=True)
class Suspend:
    """The run's next message is published from elsewhere: by its waiting list, or by the last chunk."""


Outcome = Continue | ContinueInParts | Reschedule | Finish | Suspend


class RunFailedError(RuntimeError):
    """Ends the run FAILED with this message to the user, word by word."""


@dataclass(frozen=True)
class End:
    """How a run ended; `result` becomes the job's `result` at the backend."""

    status: JobStatus
    result: JsonObject

    @property
    def error(self) -> str:
        """The error message; empty for a run that succeeded."""
        return str(self.result.get("error", ""))

    def to_json(self) -> str:
        """The text that is stored."""
        return json.dumps({"status": self.status, "result": self.result})

    @classmethod
    def from_json(cls, text: str) -> "End":
        """The end stored as this text; `KeyError`, `TypeError` or `ValueError` when it is damaged."""
        stored = json.loads(text)
        return cls(JobStatus(stored["status"]), stored["result"])


STOPPED = End(JobStatus.STOPPED, {"error": "stopped"})
"""The end of a run that a user stopped, as it is stored."""


ENDED_RUNS_SECONDS = 7 * RETENTION_SECONDS
"""How long an ended run is kept where no setting says it."""


def kept_seconds(ended_runs_seconds: float) -> int:
    """When what is kept of an ended run expires by itself: a day after it was to be forgotten."""
    return int(min(ended_runs_seconds, 1e9)) + RETENTION_SECONDS  # Redis has a limit


def stopped_job_result(task: str, counts: Mapping[str, str]) -> JsonObject:
    """The job's `result` at the backend for `STOPPED`, by the message's task.

    `counts`: the public record, final after the end.
    """
    result: JsonObject = dict(STOPPED.result)
    if task == ToTaskMessage.task:
        names = {"total_tasks": "total", "success_count": "success", "failed_count": "failed"}
        result |= {name: int(counts.get(field, 0)) for name, field in names.items()}
        result |= {"status": JobStatus.STOPPED, "message": "stopped", "failures": []}
    return result


class UnknownRunError(LookupError):
    """There is no record of this run: it never was, or it expired a day after its end was reported."""


class UnreadableRunError(RuntimeError):
    """The record of a run cannot be read."""


class DamagedRunError(UnreadableRunError):
    """The record of this run is not what any release writes."""


class NewerRunError(UnreadableRunError):
    """A worker of a newer release accepted this run: its message says what this release does not know.

    To ignore that could do what the message forbids, so the run's steps are left to newer workers.
    """


@contextmanager
def reading_record(job: str) -> Iterator[None]:
    """What fails in the block because it is not what any release writes is a `DamagedRunError`."""
    try:
        yield
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, RecursionError) as error:
        raise DamagedRunError(f"the record of job {job}'s run is damaged") from error


@dataclass(frozen=True)
class Lease:
    """A step's lock and the token that holds it, until another delivery takes the lock over.

    `deliveries`: key and field of the step's deliveries that have not ended; None for locks of other things.
    """

    key: str
    token: str
    deliveries: tuple[str, str] | None = None


@dataclass(frozen=True)
class Run(Generic[MessageT, StateT]):
    """A run as it was read, for one delivery of a step's message.

    `is_retry`: the step has begun before, so it must look before it acts. `generation` is that of the poll.
    `lease` is the step's lock. `priority` is that of the message, and of those of all steps. `traceparent` is
    the context of its trace, if it has one.
    """

    job: str
    message: MessageT
    state: StateT
    queue: str
    position: int
    step: str
    end: End | None = None
    priority: int = 0
    is_retry: bool = False
    generation: int = 0
    lease: Lease | None = None
    traceparent: str = ""


AnyRun: TypeAlias = Run[RunMessage, RunState]
"""A run of whichever workflow."""

StoredRun: TypeAlias = Run[RunMessage, StoredState]
"""A run as it was read. `Workflow.typed` gives it the state of its workflow."""


@dataclass(frozen=True)
class Workflow(Generic[MessageT, StateT]):
    """The runs of one kind of message, or of several, and the state that their steps leave for each other."""

    message: type[MessageT] | UnionType
    state: type[StateT]

    def step(
        self, name: str, position: int, queue: str | None = None, has_parts: bool = False
    ) -> "WorkflowStep[MessageT, StateT]":
        """Declare a step, see `Step`."""
        return WorkflowStep(name, position, queue, has_parts, workflow=self)

    def typed(self, run: StoredRun) -> Run[MessageT, StateT]:
        """The run with its state; raises `RunFailedError` when it is a run of another workflow."""
        if not isinstance(run.message, self.message):
            raise RunFailedError(f"job {run.job} is a run of {run.message.task}, which has no such step")
        return Run(
            job=run.job,
            message=run.message,
            state=self.state.from_stored(run.state.texts),
            queue=run.queue,
            position=run.position,
            step=run.step,
            end=run.end,
            priority=run.priority,
            is_retry=run.is_retry,
            generation=run.generation,
            lease=run.lease,
            traceparent=run.traceparent,
        )


@dataclass(frozen=True)
class WorkflowStep(Step, Generic[MessageT, StateT]):
    """A step whose function is called with a run of `workflow`."""

    workflow: Workflow[MessageT, StateT] = field(kw_only=True)


def backend_job_id(job: str) -> int | str:
    """The backend's own form of a job's id: an integer where it is one."""
    return int(job) if job.isascii() and job.isdigit() and str(int(job)) == job else job


class Acceptance(StrEnum):
    """What became of a run's message."""

    ACCEPTED = "accepted"
    KNOWN = "known"
    STOPPED = "stopped"


class ClaimStatus(StrEnum):
    """Whether a step or a poll may begin."""

    CLAIMED = "claimed"
    LOCKED = "locked"
    SUPERSEDED = "superseded"
    RUN_ENDED = "run_ended"
    UNKNOWN = "unknown"
    REPUBLISH = "republish"
