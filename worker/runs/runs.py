"""Everything that a workflow does to a run, in one place."""

from dataclasses import dataclass
from typing import Any, Protocol

from redis import Redis

from shared.channels import job_key
from shared.statuses import JobStatus
from worker.lua import Scripts
from worker.runs.events import Events
from worker.runs.heartbeat import Live, run_member
from worker.runs.keys import run_key
from worker.runs.locks import LeaseKeeper
from worker.runs.model import End, Run, Step
from worker.runs.progress import Progress, proportions_of
from worker.runs.store import RunStore, UnknownRunError

REPORT = Step("runs.report", position=0, queue="control")
"""Not a step of a run, but of its reporting; it works on ended runs too."""


class StepSender(Protocol):
    """Publishes the message of a step, and knows how many of a queue are still to be read."""

    def send(self, step: Step, queue: str, kwargs: dict[str, Any], countdown: float = 0.0) -> None:
        """Raises kombu's `OperationalError` when the broker does not take it."""

    def unread(self, queue: str) -> int:
        """Messages of `queue` that no worker has taken. Raises `OperationalError` when nobody knows."""


@dataclass(frozen=True)
class Timing:
    """Seconds that follow from the visibility timeout.

    A lock is shorter than it, so that a redelivered step finds its dead owner's lock gone. A countdown above
    half of it would multiply the task. A silent run counts as lost when the broker had its time to redeliver.
    """

    visibility_timeout: float

    @property
    def lock(self) -> float:
        """How long a lock outlives its owner."""
        return min(self.visibility_timeout / 2, 30.0)

    @property
    def longest_countdown(self) -> float:
        """No countdown is longer."""
        return self.visibility_timeout / 2

    @property
    def patience(self) -> float:
        """After so long without a sign of life a run's message counts as lost."""
        return self.visibility_timeout + 10.0


class Runs:
    """Runs in Redis, and the messages that carry them on."""

    def __init__(self, redis: "Redis", sender: StepSender, timing: Timing) -> None:
        self.redis = redis
        self.sender = sender
        self.timing = timing
        self.store = RunStore(redis)
        self.leases = LeaseKeeper(redis, timing.lock)
        self.live = Live(redis, timing.patience)
        self.progress = Progress(redis)
        self.events = Events(redis, self.report_due)
        self._scripts = Scripts(redis, "worker.runs")

    def start(self, run: Run) -> None:
        """The job is RUNNING from here on."""
        if self._scripts.run("start", [run_key(run.job), job_key(run.job)], JobStatus.RUNNING):
            self.events.publish(run.job, "state", status=JobStatus.RUNNING)
            self.report_due(run.job)
            if run.again:
                # Who began it before may have died with the report, which counts as on its way for a while.
                self.send_report(run.job)

    def advance(self, run: Run, step: str, percent: float) -> None:
        """Note how far `step` of the platform's progress record is."""
        proportions = proportions_of(run.message)
        if not self.progress.set(run.job, proportions, step, percent):
            return
        overall = float(self.redis.hget(job_key(run.job), "overall") or 0)
        self.events.publish(run.job, "progress", step=step, percent=round(percent, 2), overall=overall)
        self.report_due(run.job)

    def measure(self, run: Run, step: str, **metrics: float) -> None:
        """Replace the metrics of `step`; nothing after the end."""
        if not self.progress.set_metrics(run.job, step, metrics):
            return
        self.events.publish(run.job, "metrics", step=step, metrics=metrics)
        self.report_due(run.job)

    def finish(self, job: str, end: End, step: Step | None = None) -> bool:
        """End the run, once; the report of it follows until the backend has it.

        `step`: the one whose outcome this is. While it waited for a neighbour the run may have gone on
        without it: a room lets out a run whose dispatch has not been answered. It has no say then.
        """
        first = self.store.finish(job, end, step)
        if not first and not self.store.is_over(job):
            return False
        if first:
            self.events.publish(job, "state", status=end.status, error=end.error)
            level = "error" if end.status is JobStatus.FAILED else "info"
            self.events.log.say(job, f"{end.status} {end.error}".rstrip(), level)
        self.report_end(job)
        return first

    def holds(self, run: Run) -> bool:
        """Whether the step that `run` was read for still has its lock."""
        return run.lease is not None and self.leases.holds(run.lease.key, run.lease.token)

    def report_due(self, job: str) -> None:
        """Let the backend hear what is new, within a second or so."""
        if self._scripts.run("report_due", [run_key(job)], self.timing.patience):
            self.send_report(job)

    def report_end(self, job: str) -> None:
        """Let listeners and the backend hear the end now, if they have not yet.

        Once: after that the report is on its way, and the sweep sees to one that got lost. Every late message
        of a run would else send another one, for as long as the backend is away.
        """
        self.events.log.settle(job)
        key = run_key(job)
        if self.store.is_sealed(job):
            # A step that was at work at the end has promised another sign of life since.
            self.live.forget(run_member(job))
            return
        if self.redis.hexists(key, "end_sent"):
            return
        self.live.expect(run_member(job))
        self.send_report(job)
        self.redis.hset(key, "end_sent", 1)

    def send_report(self, job: str) -> None:
        """Publish the message of the report."""
        generation = self.store.newest_poll(job, REPORT.name)
        self.sender.send(REPORT, "control", {"job": job, "generation": generation})

    def report_sent(self, job: str, version: str) -> bool:
        """A snapshot of that version reached the backend; true when something newer waits."""
        return bool(self._scripts.run("report_sent", [run_key(job)], version))


RUN_PREFIX = "run:"


def recover_run(job: str, runs: Runs) -> None:
    """Send the message of the step at which the run stands, or of the report of its end."""
    try:
        run = runs.store.load(job)
    except UnknownRunError:
        runs.live.forget(run_member(job))
        return
    if runs.store.is_sealed(job):
        runs.live.forget(run_member(job))
        return
    if run.end is not None:
        # Not a sign of life: while the backend is away, each copy comes later than the one before.
        runs.send_report(job)
        return
    name = run.step or f"{run.message.task}.initialize"
    generation = runs.store.newest_poll(job, name)
    step = Step(name, run.position)
    queue = runs.store.step_queue(job) or run.queue
    runs.sender.send(step, queue, {"job": job, "generation": generation})
