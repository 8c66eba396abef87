"""The record of a run in Redis: accept, claim a step, update the state, finish, what was reported."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from pydantic import ValidationError
from redis import Redis

from shared.channels import RETENTION_SECONDS, job_key
from shared.messages import DeployMessage, ToTaskMessage
from shared.statuses import JobStatus
from worker.lua import redis_time
from worker.platform import mask_secrets
from worker.runs import keys
from worker.runs.events import JobLog
from worker.runs.heartbeat import run_member
from worker.runs.keys import STATE_PREFIX, RunField, run_key
from worker.runs.locks import release_arguments
from worker.runs.model import STOPPED, Acceptance, ClaimStatus, End, Lease, Run, RunMessage, Step, StoredRun
from worker.runs.scripts import run_scripts
from worker.runs.state import RunState, StoredState

S = TypeVar("S", bound=RunState)

_MESSAGES: dict[str, type[RunMessage]] = {"deploy": DeployMessage, "to_task": ToTaskMessage}


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


@dataclass(frozen=True)
class StepClaim:
    """Whether a step may begin; `run` is there only when it may."""

    status: ClaimStatus
    generation: int
    run: StoredRun | None = None
    died: int = 0
    """Deliveries of this generation that began before this one and never ended: their workers died."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands."""

    queue: str
    position: int
    has_ended: bool


@dataclass(frozen=True)
class Reported:
    """What the backend has of a run."""

    version: str
    """Counts what there is to report."""
    version_sent: str | None
    is_running_sent: bool
    patched_at: float | None
    """Redis's time of the last report."""


class RunStore:
    """Reads and writes runs. Every change that two workers could race for is one script."""

    def __init__(self, redis: "Redis") -> None:
        self.redis = redis
        self._scripts = run_scripts(redis)
        self._log = JobLog(redis)

    # The beginning of a run and of its steps

    def accept(self, message: RunMessage, queue: str) -> Acceptance:
        """Create the run of `message`, once a job; `queue` is where its steps will go."""
        content = message.model_dump(mode="json", exclude_unset=True, by_alias=True)
        job = message.job
        answer = self._scripts.run(
            "accept",
            [run_key(job), job_key(job), keys.stop_key(job)],
            json.dumps({"task": message.task, "kwargs": content}, separators=(",", ":")),
            message.action,
            message.plugin,
            queue,
            _end_text(STOPPED),
        )
        return Acceptance(answer)

    def exists(self, job: str) -> bool:
        """Whether there is a run of this job, live or ended."""
        return bool(self.redis.exists(run_key(job)))

    def load(self, job: str) -> StoredRun:
        """Read the run; raises `UnknownRunError`, `DamagedRunError`, or `NewerRunError` if only newer workers
        understand it."""
        stored = self.redis.hgetall(run_key(job))
        if not stored:
            raise UnknownRunError(f"job {job} has no run here")
        try:
            message = json.loads(stored[RunField.MESSAGE])
            task, kwargs = message["task"], message["kwargs"]
            queue, position = stored[RunField.QUEUE], int(stored[RunField.POSITION])
            end = _end(stored.get(RunField.ENDED))
        except (KeyError, TypeError, ValueError):
            raise DamagedRunError(f"the record of job {job}'s run is damaged") from None
        state = {
            name.removeprefix(STATE_PREFIX): text
            for name, text in stored.items()
            if name.startswith(STATE_PREFIX)
        }
        try:
            validated = _MESSAGES[task].model_validate(kwargs)
        except (KeyError, ValidationError):
            raise NewerRunError(f"the run of job {job} is of a newer release") from None
        return Run(
            job=job,
            message=validated,
            state=StoredState(state),
            queue=queue,
            position=position,
            step=stored.get(RunField.STEP, ""),
            end=end,
        )

    def standings(self, jobs: Iterable[str]) -> list[Standing | None]:
        """Where these runs stand, read in one go; None for one that is gone."""
        with self.redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hmget(run_key(job), [RunField.QUEUE, RunField.POSITION, RunField.ENDED])
            found = pipe.execute()
        return [
            None if queue is None else Standing(str(queue), int(position), end is not None)
            for queue, position, end in found
        ]

    def claim_step(
        self,
        job: str,
        step: Step,
        part: str,
        token: str,
        lock_seconds: float,
        generation: int,
        redelivered: bool,
    ) -> StepClaim:
        """Take the step's lock and move the run on to it, if the run is open and is not further on.

        Raises `UnreadableRunError` as `load` does; the lock is free then.
        """
        name = f"{step.name}:{part}" if part else step.name
        lease = step_lease(job, name, token)
        status, times, newest, died = self._scripts.run(
            "claim_step",
            [run_key(job), job_key(job), lease.key, keys.polls_key(job)],
            name,
            step.position,
            token,
            int(lock_seconds * 1000),
            generation,
            int(redelivered),
            int(not step.has_parts),
            step.queue or "",
            keys.newest_field(name),
            keys.claimed_field(name),
            keys.deliveries_field(name),
        )
        run = None
        if status == ClaimStatus.CLAIMED:
            try:
                run = self.load(job)
            except UnreadableRunError:
                self._scripts.run("release_lock", *release_arguments(lease))
                raise
            run = replace(run, is_retry=int(times) > 1, generation=generation, lease=lease)
        return StepClaim(ClaimStatus(status), int(newest), run, int(died))

    def step_queue(self, job: str) -> str | None:
        """The queue that belongs to the step at which the run stands; None: the run's own."""
        return self.redis.hget(run_key(job), RunField.STEP_QUEUE) or None

    def mark_running(self, job: str) -> bool:
        """Show the job as RUNNING; false when it has ended."""
        keys_ = [run_key(job), job_key(job)]
        return bool(self._scripts.run("mark_running", keys_, JobStatus.RUNNING))

    def update_state(self, run: Run[RunMessage, S], state: S) -> None:
        """Store the fields in which `state` differs from `run.state`, and leave the others as they are."""
        texts = run.state.changes(state)
        if texts:
            fields = {f"{STATE_PREFIX}{name}": text for name, text in texts.items()}
            self.redis.hset(run_key(run.job), mapping=fields)

    # The end

    def has_ended(self, job: str) -> bool:
        """Whether the run has ended, or is gone."""
        return bool(self.redis.hexists(run_key(job), RunField.ENDED)) or not self.exists(job)

    def finish(self, job: str, end: End, step: Step | None = None, *, grace_seconds: float = 0.0) -> bool:
        """Write the end; false when the run had one already, is gone, or has passed `step`, which ends it.

        An end that is not reported after `grace_seconds` is overdue. A run that waits in a list leaves it.
        """
        end = End(end.status, mask_secrets(end.result))
        position = "" if step is None else step.position
        keys_ = [run_key(job), job_key(job), keys.heartbeats_key()]
        arguments = _end_text(end), end.status, end.error, position, job, run_member(job), grace_seconds
        return bool(self._scripts.run("finish", keys_, *arguments))

    def seconds_since_end(self, job: str) -> float | None:
        """Seconds since the end was written; None for a run without an end."""
        if not self.redis.hexists(run_key(job), RunField.ENDED):
            return None
        return redis_time(self.redis) - float(self.redis.hget(job_key(job), "updated") or 0)

    def seconds_since_change(self, job: str) -> float:
        """Seconds since the run's public record changed."""
        return redis_time(self.redis) - float(self.redis.hget(job_key(job), "updated") or 0)

    def remember_stop(self, job: str) -> None:
        """Keep a stop that came before its job's message for a day."""
        self.redis.set(keys.stop_key(job), 1, ex=RETENTION_SECONDS)

    def expire_with_run(self, job: str, *names: str) -> None:
        """Let further keys of a workflow expire with the run."""
        self.redis.sadd(keys.workflow_keys_key(job), *names)

    # What the backend has

    def schedule_report(self, job: str, grace_seconds: float) -> bool:
        """Something is to be reported; true for the caller that is to publish the report.

        A report that has not come `grace_seconds` after it was published is published again.
        """
        return bool(self._scripts.run("schedule_report", [run_key(job)], grace_seconds))

    def reported(self, job: str) -> Reported:
        """How far the run's progress was reported."""
        names = [RunField.VERSION, RunField.VERSION_SENT, RunField.RUNNING_SENT, RunField.PATCHED_AT]
        version, version_sent, running_sent, patched_at = self.redis.hmget(run_key(job), names)
        return Reported(
            version=version or "0",
            version_sent=version_sent,
            is_running_sent=running_sent is not None,
            patched_at=None if patched_at is None else float(patched_at),
        )

    def mark_patched(self, job: str, *, is_running_sent: bool = False) -> None:
        """A report is sent now; `is_running_sent`: the backend has accepted one, with the status RUNNING."""
        fields: dict[str, float] = {RunField.PATCHED_AT: redis_time(self.redis)}
        if is_running_sent:
            fields[RunField.RUNNING_SENT] = 1
        self.redis.hset(run_key(job), mapping=fields)

    def acknowledge_report(self, job: str, version: str) -> bool:
        """The backend has a snapshot of that version; true when something newer is to be sent."""
        return bool(self._scripts.run("acknowledge_report", [run_key(job)], version))

    def is_end_sent(self, job: str) -> bool:
        """Whether the first report of the end was published."""
        return bool(self.redis.hexists(run_key(job), RunField.END_SENT))

    def mark_end_sent(self, job: str) -> None:
        """The first report of the end was published."""
        self.redis.hset(run_key(job), RunField.END_SENT, 1)

    def mark_reported(self, job: str) -> None:
        """The backend has the end: nothing more will be sent, and the run's keys expire in a day."""
        expiring = [
            job_key(job),
            run_key(job),
            keys.progress_key(job),
            keys.messages_key(job),
            keys.polls_key(job),
            keys.workflow_keys_key(job),
            *sorted(self.redis.smembers(keys.workflow_keys_key(job))),
        ]
        # The log's own keys may have to stay: a log that is followed for the job can outlive the run.
        self._log.close_if_complete(job, reported=True)
        # In one transaction: a reported run without expiry would stay for ever.
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.hset(run_key(job), RunField.REPORTED, 1)
            for key in expiring:
                pipe.expire(key, RETENTION_SECONDS)
            pipe.zadd(keys.ended_logs_key(), {job: 0})
            pipe.execute()

    def is_reported(self, job: str) -> bool:
        """Whether the backend has the end (or the run is gone)."""
        return bool(self.redis.hexists(run_key(job), RunField.REPORTED)) or not self.exists(job)


def step_lease(job: str, name: str, token: str) -> Lease:
    """What a delivery of the step, or of the part of one, gets when it claims it."""
    return Lease(keys.lock_key(job, name), token, (keys.polls_key(job), keys.deliveries_field(name)))


def _end_text(end: End) -> str:
    return json.dumps({"status": end.status, "result": end.result})


def _end(text: str | None) -> End | None:
    if text is None:
        return None
    stored = json.loads(text)
    return End(JobStatus(stored["status"]), stored["result"])
