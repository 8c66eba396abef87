"""The outbox: which jobs are to be reported to the backend, and by whom. The webhook has one, too."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from redis import Redis

from shared.channels import RETENTION_SECONDS, job_key
from worker.lua import redis_time
from worker.runs import keys
from worker.runs.events import MessageEntry, message_entries
from worker.runs.heartbeat import run_member
from worker.runs.keys import RunField, run_key
from worker.runs.model import End, Lease, StoredRun, reading_record
from worker.runs.progress import SECONDS_BETWEEN_PATCHES
from worker.runs.scripts import run_scripts
from worker.runs.store import RunStore, hash_of

REPORT = "runs.report"
"""Names the lock of a job's report, and the task by which workers of older releases report."""

MAX_MESSAGES = 100
"""Messages for users in one request to the backend."""

MAX_TAKEN_OVER = 100

WEBHOOKS_SECONDS = 30 * RETENTION_SECONDS
"""How long what is to be sent to the webhook is kept where nobody looks any more; scripts have it, too."""


class ReportStatus(StrEnum):
    """Whether a report may be sent."""

    CLAIMED = "claimed"
    NOTHING = "nothing"
    """There is nothing to send."""
    EARLY = "early"
    """The last PATCH was a moment ago."""
    LOCKED = "locked"
    """Another worker sends the report."""


@dataclass(frozen=True)
class ReportClaim:
    """What is to be reported of a run, read when its report was claimed."""

    status: ReportStatus
    wait: float = 0.0
    """Seconds until the report may be sent, for `EARLY`."""
    lease: Lease | None = None
    now: float = 0.0
    """Redis's time."""
    stored: Mapping[str, str] = field(default_factory=dict)
    progress: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, str] = field(default_factory=dict)
    messages: Sequence[MessageEntry] = ()

    @property
    def version(self) -> str | None:
        """Counts what there is to report, without messages; None when the backend has it."""
        version = self.stored.get(RunField.VERSION)
        return None if version == self.stored.get(RunField.VERSION_SENT) else version

    @property
    def is_running_sent(self) -> bool:
        """Whether the backend has the status RUNNING."""
        return RunField.RUNNING_SENT in self.stored

    def run(self, job: str) -> StoredRun:
        """The run; raises `DamagedRunError` or `NewerRunError` as `RunStore.load` does."""
        return RunStore.parse(job, self.stored)


class DueJobs:
    """Jobs of which something is to be sent: a sorted set, by the time at which any worker may send it."""

    def __init__(self, redis: "Redis", key: str) -> None:
        self._scripts = run_scripts(redis)
        self._redis = redis
        self._key = key

    def take_over(self) -> list[str]:
        """Jobs of which nothing was sent in time, because their worker died: the caller sends it."""
        return list(self._scripts.run("take_over_reports", [self._key], MAX_TAKEN_OVER))

    def enter(self, delays: Mapping[str, float]) -> None:
        """Let whichever worker looks first send what is due of these jobs, each after so many seconds."""
        self._enter(delays)

    def hand_over(self, delays: Mapping[str, float]) -> None:
        """The same, without what another worker has sent meanwhile."""
        self._enter(delays, only_known=True)

    def _enter(self, delays: Mapping[str, float], *, only_known: bool = False) -> None:
        if delays:
            now = redis_time(self._redis)
            due = {job: now + delay for job, delay in delays.items()}
            self._redis.zadd(self._key, due, xx=only_known)


class Outbox(DueJobs):
    """The jobs that are to be reported. What changes in a run enters its job; a report takes it out."""

    def __init__(
        self, redis: "Redis", lock_seconds: float, grace_seconds: float, *, has_webhook: bool = False
    ) -> None:
        """`grace_seconds`: how long after its deadline a heartbeat counts as overdue.

        `has_webhook`: see `RunStore`.
        """
        super().__init__(redis, keys.outbox_key())
        self._lock_seconds = lock_seconds
        self._has_webhook = has_webhook
        self._grace_seconds = grace_seconds

    def schedule_end(self, job: str) -> bool:
        """Enter the end of a run, once; true when the caller is to report it at once."""
        heartbeats = [keys.heartbeats_key(), keys.overdue_counts_key()]
        names = [run_key(job), self._key, *heartbeats, keys.webhooks_key()]
        args = job, run_member(job), self._grace_seconds, int(self._has_webhook)
        return bool(self._scripts.run("schedule_end_report", names, *args))

    def enter_rejected_end(self, job: str, end: End, tenant: str | None) -> None:
        """Have the end sent to the webhook of a job that has no run, because its message was rejected."""
        name, (now, _) = keys.rejected_end_key(job), self._redis.time()
        message = json.dumps({"task": "", "kwargs": {"tenant": tenant}})
        text = json.dumps({"status": end.status, "result": end.result})
        with self._redis.pipeline() as pipe:
            # The first time stays, so that a repetition is the same event with the same id.
            pipe.hsetnx(name, "updated", now)
            pipe.hset(name, mapping={RunField.MESSAGE: message, RunField.ENDED: text})
            pipe.expire(name, RETENTION_SECONDS)
            pipe.zadd(keys.webhooks_key(), {job: now})
            pipe.expire(keys.webhooks_key(), WEBHOOKS_SECONDS)
            pipe.execute()

    def claim(self, job: str, token: str) -> ReportClaim:
        """Take the lock of the job's report and read what is to be reported; messages are removed.

        Raises `DamagedRunError` for what is no text.
        """
        lease = Lease(keys.lock_key(job, REPORT), token)
        names = [run_key(job), keys.progress_key(job), job_key(job), keys.messages_key(job)]
        names += [lease.key, self._key, keys.patched_key(job)]
        limits = int(self._lock_seconds * 1000), SECONDS_BETWEEN_PATCHES, MAX_MESSAGES
        with reading_record(job):
            status, *found = self._scripts.run("claim_report", names, job, token, *limits)
        if status == ReportStatus.EARLY:
            return ReportClaim(ReportStatus.EARLY, wait=float(found[0]))
        if status != ReportStatus.CLAIMED:
            return ReportClaim(ReportStatus(status))
        now, stored, progress, record, messages = found
        return ReportClaim(
            ReportStatus.CLAIMED,
            lease=lease,
            now=float(now),
            stored=hash_of(stored),
            progress=hash_of(progress),
            record=hash_of(record),
            messages=message_entries(messages),
        )

    def acknowledge(self, job: str, lease: Lease, version: str | None) -> bool:
        """The backend has a snapshot of that version, or messages alone. True when there is more to send."""
        names = [run_key(job), keys.messages_key(job), lease.key, self._key, keys.patched_key(job)]
        args = job, lease.token, version or "", SECONDS_BETWEEN_PATCHES
        return bool(self._scripts.run("acknowledge_report", names, *args))

    def postpone(self, job: str, seconds: float) -> None:
        """The caller sends the report again after some seconds, and no other worker does before."""
        names = [run_key(job), self._key, keys.heartbeats_key()]
        args = job, seconds, run_member(job), self._grace_seconds
        self._scripts.run("postpone_report", names, *args)
