"""Everything that a workflow does to a run, in one place."""

from dataclasses import dataclass
from typing import Any, Protocol

from redis import Redis

from shared.channels import job_key
from shared.statuses import JobStatus
from worker.runs.events import Events
from worker.runs.generations import Generations
from worker.runs.heartbeat import Heartbeats, run_member
from worker.runs.locks import Locks
from worker.runs.model import AnyRun, End, Step
from worker.runs.progress import Progress, proportions_of
from worker.runs.store import RunStore, UnknownRunError

REPORT = Step("runs.report", position=0, queue="control")
"""Not a step of a run, but of its reporting; it works on ended runs too."""


class StepPublisher(Protocol):
    """Publishes the message of a step, and knows how many of a queue are still to be read."""

    def publish(self, step: Step, queue: str, kwargs: dict[str, Any], countdown: float = 0.0) -> None:
        """Raises kombu's `OperationalError` when the broker does not take it."""

    def queue_length(self, queue: str) -> int:
        """Messages of `queue` that no worker has taken. Raises `OperationalError` when nobody knows."""


@dataclass(frozen=True)
class Timing:
    """Seconds that follow from the visibility timeout.

    A lock is shorter than it, so that a redelivered step finds its dead owner's lock gone. A countdown above
    half of it would multiply the task. A silent run counts as lost when the broker had its time to redeliver.
    """

    visibility_timeout: float

    @property
    def lock_seconds(self) -> float:
        """How long a lock outlives its owner."""
        return min(self.visibility_timeout / 2, 30.0)

    @property
    def max_countdown(self) -> float:
        """No countdown is longer."""
        return self.visibility_timeout / 2

    @property
    def heartbeat_grace_seconds(self) -> float:
        """After so long without a sign of life a run's message counts as lost."""
        return self.visibility_timeout + 10.0


class Runs:
    """Runs in Redis, and the messages that carry them on."""

    def __init__(self, redis: "Redis", publisher: StepPublisher, timing: Timing) -> None:
        self.redis = redis
        self.publisher = publisher
        self.timing = timing
        self.store = RunStore(redis)
        self.generations = Generations(redis)
        self.locks = Locks(redis, timing.lock_seconds)
        self.heartbeats = Heartbeats(redis, timing.heartbeat_grace_seconds)
        self.progress = Progress(redis)
        self.events = Events(redis, self.schedule_report)

    def mark_running(self, run: AnyRun) -> None:
        """The job is RUNNING from here on."""
        if self.store.mark_running(run.job):
            self.events.publish(run.job, "state", status=JobStatus.RUNNING)
            self.schedule_report(run.job)
            if run.is_retry:
                # Who began it before may have died with the report, which counts as on its way for a while.
                self.publish_report(run.job)

    def set_progress(self, run: AnyRun, step: str, percent: float) -> None:
        """Note how far `step` of the platform's progress record is."""
        proportions = proportions_of(run.message)
        if not self.progress.set(run.job, proportions, step, percent):
            return
        overall = float(self.redis.hget(job_key(run.job), "overall") or 0)
        self.events.publish(run.job, "progress", step=step, percent=round(percent, 2), overall=overall)
        self.schedule_report(run.job)

    def set_metrics(self, run: AnyRun, step: str, **metrics: float) -> None:
        """Replace the metrics of `step`; nothing after the end."""
        if not self.progress.set_metrics(run.job, step, metrics):
            return
        self.events.publish(run.job, "metrics", step=step, metrics=metrics)
        self.schedule_report(run.job)

    def finish(self, job: str, end: End, step: Step | None = None) -> bool:
        """End the run, once; the report of it follows until the backend has it.

        `step`: the one whose outcome this is. While it waited for a neighbour the run may have gone on
        without it: a room lets out a run whose dispatch has not been answered. It has no say then.
        """
        first = self.store.finish(job, end, step)
        if not first and not self.store.has_ended(job):
            return False
        if first:
            self.events.publish(job, "state", status=end.status, error=end.error)
            level = "error" if end.status is JobStatus.FAILED else "info"
            self.events.log.append(job, f"{end.status} {end.error}".rstrip(), level)
        self.ensure_end_reported(job)
        return first

    def holds_lease(self, run: AnyRun) -> bool:
        """Whether the step that `run` was read for still has its lock."""
        return run.lease is not None and self.locks.is_held(run.lease.key, run.lease.token)

    def schedule_report(self, job: str) -> None:
        """Let the backend hear what is new, within a second or so."""
        if self.store.schedule_report(job, self.timing.heartbeat_grace_seconds):
            self.publish_report(job)

    def ensure_end_reported(self, job: str) -> None:
        """Let listeners and the backend hear the end now, if they have not yet.

        Once: after that the report is on its way, and the sweep sees to one that got lost. Every late message
        of a run would else send another one, for as long as the backend is away.
        """
        self.events.log.close_if_complete(job)
        if self.store.is_reported(job):
            # A step that was at work at the end has promised another sign of life since.
            self.heartbeats.remove(run_member(job))
            return
        if self.store.is_end_sent(job):
            return
        self.heartbeats.schedule(run_member(job))
        self.publish_report(job)
        self.store.mark_end_sent(job)

    def publish_report(self, job: str) -> None:
        """Publish the message of the report."""
        generation = self.generations.newest(job, REPORT.name)
        self.publisher.publish(REPORT, "control", {"job": job, "generation": generation})


RUN_PREFIX = "run:"


def recover_run(job: str, runs: Runs) -> None:
    """Send the message of the step at which the run stands, or of the report of its end."""
    try:
        run = runs.store.load(job)
    except UnknownRunError:
        runs.heartbeats.remove(run_member(job))
        return
    if runs.store.is_reported(job):
        runs.heartbeats.remove(run_member(job))
        return
    if run.end is not None:
        # Not a sign of life: while the backend is away, each copy comes later than the one before.
        runs.publish_report(job)
        return
    name = run.step or f"{run.message.task}.initialize"
    generation = runs.generations.newest(job, name)
    step = Step(name, run.position)
    queue = runs.store.step_queue(job) or run.queue
    runs.publisher.publish(step, queue, {"job": job, "generation": generation})
