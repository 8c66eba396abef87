"""What workflows do to runs: status, progress, messages, the end, and the report of it to the backend."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Protocol

from redis import Redis, RedisError

from shared.channels import RETENTION_SECONDS
from shared.statuses import JobStatus
from worker.platform import redact
from worker.plugins.output import PluginOutput
from worker.runs.events import Events, OnReportDue
from worker.runs.generations import Generations
from worker.runs.heartbeat import Heartbeats, run_member
from worker.runs.locks import Locks
from worker.runs.model import (
    ENDED_RUNS_SECONDS,
    AnyRun,
    Continue,
    ContinueInParts,
    DamagedRunError,
    End,
    Step,
    UnknownRunError,
    UnreadableRunError,
)
from worker.runs.progress import SECONDS_BETWEEN_PATCHES, Progress, proportions_of
from worker.runs.reports.outbox import Outbox
from worker.runs.shares.tenants import ShareLimits, Shares
from worker.runs.store import CollectedMessage, RunStore

REPORT_LOCK_SECONDS = 6.0
"""How long the lock of a report lasts whose sender died."""


def leave_to_workers(job: str, delay: float) -> None:
    """`OnReportDue` of a process that sends no reports: the workers find the job in the outbox."""


MAX_UNREADABLE_SECONDS = RETENTION_SECONDS
"""How long a message is kept for a newer worker, and a run that only newer workers can read."""


class StepPublisher(Protocol):
    """Publishes messages of steps and counts the messages of queues. See `CeleryPublisher`."""

    is_redis: bool
    shares_redis: bool

    def publish(
        self,
        step: Step,
        queue: str,
        kwargs: Mapping[str, object],
        countdown: float = 0.0,
        priority: int = 0,
        headers: Mapping[str, object] | None = None,
    ) -> None:
        """Raises kombu's `OperationalError` when the broker does not accept it."""

    def collecting(self) -> AbstractContextManager[list[CollectedMessage] | None]:
        """Collect what is published within the block; None where the queues are in no Redis of the runs."""

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

    def __init__(
        self,
        redis: "Redis",
        publisher: StepPublisher,
        timing: Timing,
        on_report_due: OnReportDue = leave_to_workers,
        on_webhook_due: Callable[[str], None] | None = None,
        share_limits: ShareLimits = ShareLimits(),  # noqa: B008 - it is frozen
        ended_runs_seconds: float = ENDED_RUNS_SECONDS,
    ) -> None:
        """`on_webhook_due`: this process is to send a job's end to the webhook; None where there is none.

        `ended_runs_seconds`: see `RunStore`.
        """
        self.redis = redis
        self.publisher = publisher
        self.timing = timing
        self.store = RunStore(
            redis,
            timing.heartbeat_grace_seconds,
            has_webhook=on_webhook_due is not None,
            ended_runs_seconds=ended_runs_seconds,
        )
        self.generations = Generations(redis)
        self.locks = Locks(redis, timing.lock_seconds)
        self.heartbeats = Heartbeats(redis, timing.heartbeat_grace_seconds)
        self.shares = Shares(redis, publisher, self.heartbeats, share_limits)
        self.progress = Progress(redis)
        self.outbox = Outbox(
            redis,
            REPORT_LOCK_SECONDS,
            timing.heartbeat_grace_seconds,
            has_webhook=on_webhook_due is not None,
        )
        self.report_locks = Locks(redis, REPORT_LOCK_SECONDS)
        self.on_report_due = on_report_due
        self.on_webhook_due = on_webhook_due
        self.events = Events(redis, on_report_due)

    def mark_running(self, run: AnyRun) -> None:
        """Show and report the job as RUNNING."""
        if self.store.mark_running(run.job):
            self.on_report_due(run.job, 0.0)

    def set_progress(self, run: AnyRun, step: str, percent: float) -> None:
        """Store, publish and report how far `step` of the platform's progress record is."""
        if self.progress.set(run.job, proportions_of(run.message), step, percent):
            self.on_report_due(run.job, SECONDS_BETWEEN_PATCHES)

    def set_metrics(self, run: AnyRun, step: str, **metrics: float) -> None:
        """Replace, publish and report the metrics of `step`; does nothing after the end."""
        if self.progress.set_metrics(run.job, step, metrics):
            self.on_report_due(run.job, SECONDS_BETWEEN_PATCHES)

    def add_plugin_output(self, job: str, output: PluginOutput, *, in_log: bool = True) -> None:
        """Take over what the run's plugin code has said: log, progress, metrics. After the end, nothing.

        `in_log`: see `Events.entry`.
        """
        for entry in output.entries:
            self.events.entry(job, entry, in_log=in_log)
        # The author's names may show secrets as any text may.
        progress = {redact(step): percent for step, percent in output.progress.items()}
        metrics = {
            redact(step): {redact(name): value for name, value in values.items()}
            for step, values in output.metrics.items()
        }
        if (progress or metrics) and self.progress.set_plugin_values(job, progress, metrics):
            self.on_report_due(job, SECONDS_BETWEEN_PATCHES)

    def continue_with(self, run: AnyRun, outcome: Continue | ContinueInParts) -> bool:
        """Publish the message of the next step, or those of parts; whether this step's lock is released.

        Where the queues are in the same Redis, one script does all of it. When the lock was lost, another
        delivery may do the same; the message is published nevertheless, and its claim sorts that out.
        """
        countdown, stands_at = 0.0, None
        if isinstance(outcome, ContinueInParts):
            following, stands_at = outcome.parts, outcome.step
        else:
            following, countdown = [outcome], min(outcome.countdown, self.timing.max_countdown)

        def publish() -> None:
            for each in following:
                kwargs = {"job": run.job, **each.kwargs}
                queue = each.step.queue or run.queue
                self.publisher.publish(each.step, queue, kwargs, countdown, run.priority)

        with self.publisher.collecting() as messages:
            publish()
        if run.lease is not None and self.store.end_step(run.job, run.lease, countdown, messages, stands_at):
            return True
        self.heartbeats.schedule(run_member(run.job), countdown)
        if messages:
            publish()
        return False

    def finish(self, job: str, end: End, step: Step | None = None) -> bool:
        """End the run, once, and have the end reported until the backend has it.

        `step` is the step whose outcome this is. While it waited for a dependency, the run may have gone on
        without it, as a waiting list resumes a run whose dispatch was not answered: then it ends nothing.
        """
        return bool(self.finish_all([job], end, step))

    def finish_all(self, jobs: Sequence[str], end: End, step: Step | None = None) -> list[str]:
        """The same for many runs in one call of Redis; returns those that this call has ended."""
        ended = self.store.finish_all(jobs, end, step)
        if self.shares.are_limited:
            for job, tenant in self.store.tenants(ended).items():
                self.shares.free_run(job, tenant)
        for job in jobs:
            if job in ended:
                self.on_report_due(job, 0.0)
            elif self.store.has_ended(job):
                self.ensure_end_reported(job)
        return ended

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

    def ensure_end_reported(self, job: str) -> None:
        """Close the log and have the end reported, unless that was done."""
        self.events.log.close_if_complete(job)
        if self.outbox.schedule_end(job):
            self.on_report_due(job, 0.0)

    def mark_reported(self, job: str) -> None:
        """The backend has the end, or will not get it any more. Then the webhook gets it, if there is one."""
        if self.store.mark_reported(job) and self.on_webhook_due is not None:
            self.on_webhook_due(job)

    def send_rejected_end(self, job: str, end: End, tenant: str | None) -> None:
        """The backend has the end of a job without a run; the webhook is to hear it, too, if there is one."""
        if self.on_webhook_due is not None:
            self.outbox.enter_rejected_end(job, end, tenant)
            self.on_webhook_due(job)


def publish_current_step(run: AnyRun, runs: Runs) -> None:
    """Publish the message of the step at which a run stands."""
    name = run.step or f"{run.message.task}.initialize"
    generation = runs.generations.newest(run.job, name)
    step = Step(name, run.position)
    queue = runs.store.step_queue(run.job) or run.queue
    kwargs = {"job": run.job, "generation": generation}
    runs.publisher.publish(step, queue, kwargs, priority=run.priority)


def recover_run(job: str, runs: Runs) -> None:
    """Publish the message of the step at which an overdue run stands, or have its end reported."""
    try:
        run = runs.store.load(job)
        if run.end is None:
            publish_current_step(run, runs)
        else:
            runs.ensure_end_reported(job)
    except UnknownRunError:
        runs.heartbeats.remove(run_member(job))
    except UnreadableRunError as error:
        recover_unreadable_run(job, runs, error)


def recover_unreadable_run(job: str, runs: Runs, error: UnreadableRunError) -> None:
    """End a run that is damaged, or for which no newer worker has come in a day; raise `error` until then."""
    if runs.store.has_ended(job):
        runs.ensure_end_reported(job)
        return
    if not runs.is_lost(job, error):
        raise error
    runs.finish(job, End(JobStatus.FAILED, {"error": str(error)}))
