"""What workflows do to runs: status, progress, messages, the end, and the report of it to the backend."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from redis import Redis, RedisError

from shared.channels import RETENTION_SECONDS, job_key
from shared.statuses import JobStatus
from worker.runs.events import Events
from worker.runs.generations import Generations
from worker.runs.heartbeat import Heartbeats, run_member
from worker.runs.locks import Locks
from worker.runs.model import AnyRun, End, Step
from worker.runs.progress import Progress, proportions_of
from worker.runs.store import DamagedRunError, RunStore, UnknownRunError, UnreadableRunError

REPORT = Step("runs.report", position=0, queue="control")
"""Reports a run to the backend. It is no step of the run, and also runs after its end."""


MAX_UNREADABLE_SECONDS = RETENTION_SECONDS
"""How long a message is kept for a newer worker, and a run that only newer workers can read."""


class StepPublisher(Protocol):
    """Publishes messages of steps and counts the messages of queues. See `CeleryPublisher`."""

    def publish(self, step: Step, queue: str, kwargs: Mapping[str, object], countdown: float = 0.0) -> None:
        """Raises kombu's `OperationalError` when the broker does not accept it."""

    def queue_length(self, queue: str) -> int:
        """Messages of `queue` that no worker has fetched; raises `OperationalError` without an answer."""


@dataclass(frozen=True)
class Timing:
    """Times in seconds that follow from the visibility timeout.

    A lock expires before it, so that a redelivered step finds the lock of a dead worker gone. A run is
    overdue once the broker must have redelivered.
    """

    visibility_timeout: float

    @property
    def lock_seconds(self) -> float:
        """How long the lock of a dead worker lasts."""
        return min(self.visibility_timeout / 2, 30.0)

    @property
    def max_countdown(self) -> float:
        """The longest pause between two attempts that nobody has asked for."""
        return self.visibility_timeout / 2

    @property
    def heartbeat_grace_seconds(self) -> float:
        """How long after its deadline a heartbeat counts as overdue."""
        return self.visibility_timeout + 10.0


class Runs:
    """Runs in Redis, and the messages that move them on."""

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
        """Show and report the job as RUNNING."""
        if self.store.mark_running(run.job):
            self.events.publish(run.job, "state", status=JobStatus.RUNNING)
            self.schedule_report(run.job)
            if run.is_retry:
                # The worker that began it before may have died before it published the report, for which no
                # other one is published for a while.
                self.publish_report(run.job)

    def set_progress(self, run: AnyRun, step: str, percent: float) -> None:
        """Store and publish how far `step` of the platform's progress record is."""
        proportions = proportions_of(run.message)
        if not self.progress.set(run.job, proportions, step, percent):
            return
        overall = float(self.redis.hget(job_key(run.job), "overall") or 0)
        self.events.publish(run.job, "progress", step=step, percent=round(percent, 2), overall=overall)
        self.schedule_report(run.job)

    def set_metrics(self, run: AnyRun, step: str, **metrics: float) -> None:
        """Replace and publish the metrics of `step`; does nothing after the end."""
        if not self.progress.set_metrics(run.job, step, metrics):
            return
        self.events.publish(run.job, "metrics", step=step, metrics=metrics)
        self.schedule_report(run.job)

    def finish(self, job: str, end: End, step: Step | None = None) -> bool:
        """End the run, once, and have the end reported until the backend has it.

        `step` is the step whose outcome this is. While it waited for a dependency, the run may have gone on
        without it, as a waiting list resumes a run whose dispatch was not answered: then it ends nothing.
        """
        first = self.store.finish(job, end, step, grace_seconds=self.timing.heartbeat_grace_seconds)
        if not first and not self.store.has_ended(job):
            return False
        if first:
            self.events.publish(job, "state", status=end.status, error=end.error)
            level = "error" if end.status is JobStatus.FAILED else "info"
            self.events.log.append(job, f"{end.status} {end.error}".rstrip(), level)
        self.ensure_end_reported(job)
        return first

    def is_lost(self, job: str, error: UnreadableRunError) -> bool:
        """Whether nobody will read the run: it is damaged, or no newer worker has changed it in a day."""
        if isinstance(error, DamagedRunError):
            return True
        return self.store.seconds_since_change(job) >= MAX_UNREADABLE_SECONDS

    def is_known_to_have_ended(self, job: str) -> bool:
        """Whether the run has ended; false while Redis does not say it."""
        with suppress(RedisError):
            return self.store.has_ended(job)
        return False

    def holds_lease(self, run: AnyRun) -> bool:
        """Whether the step for which `run` was read still holds its lock."""
        return run.lease is not None and self.locks.is_held(run.lease.key, run.lease.token)

    def schedule_report(self, job: str) -> None:
        """Report what is new to the backend, within about a second."""
        if self.store.schedule_report(job, self.timing.heartbeat_grace_seconds):
            self.publish_report(job)

    def ensure_end_reported(self, job: str) -> None:
        """Close the log and publish the report of the end, unless that was done.

        Once, because every late message of a run would publish another report for as long as the backend is
        unavailable. The sweep repeats a report that was lost.
        """
        self.events.log.close_if_complete(job)
        if self.store.is_reported(job):
            # A step that was running at the end has scheduled another heartbeat since.
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


def recover_run(job: str, runs: Runs) -> None:
    """Publish the message of the step at which an overdue run stands, or of the report of its end."""
    try:
        run = runs.store.load(job)
    except UnknownRunError:
        runs.heartbeats.remove(run_member(job))
        return
    except UnreadableRunError as error:
        recover_unreadable_run(job, runs, error)
        return
    if runs.store.is_reported(job):
        runs.heartbeats.remove(run_member(job))
        return
    if run.end is not None:
        # No heartbeat: while the backend is unavailable, each copy is published later than the one before.
        runs.publish_report(job)
        return
    name = run.step or f"{run.message.task}.initialize"
    generation = runs.generations.newest(job, name)
    step = Step(name, run.position)
    queue = runs.store.step_queue(job) or run.queue
    runs.publisher.publish(step, queue, {"job": job, "generation": generation})


def recover_unreadable_run(job: str, runs: Runs, error: UnreadableRunError) -> None:
    """End a run that is damaged, or for which no newer worker has come in a day; raise `error` until then."""
    if runs.store.has_ended(job):
        runs.ensure_end_reported(job)
        runs.publish_report(job)
        return
    if not runs.is_lost(job, error):
        raise error
    runs.finish(job, End(JobStatus.FAILED, {"error": str(error)}))
