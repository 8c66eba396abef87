"""The record of a run in Redis: accept, claim a step, update the state, finish, what was reported."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeVar

from pydantic import ValidationError
from redis import Redis

from shared.channels import RETENTION_SECONDS, events_channel, job_key, logs_channel
from shared.messages import DeployMessage, ToTaskMessage
from shared.statuses import JobStatus
from worker import metrics
from worker.lua import redis_time
from worker.platform import mask_secrets
from worker.runs import keys
from worker.runs.events import LOG_SCRIPT, line_time, log_args, log_keys, text_lines
from worker.runs.heartbeat import run_member
from worker.runs.keys import STATE_PREFIX, RunField, run_key
from worker.runs.locks import release_arguments, step_lease
from worker.runs.model import (
    ENDED_RUNS_SECONDS,
    STOPPED,
    Acceptance,
    AnyRun,
    ClaimStatus,
    End,
    Lease,
    NewerRunError,
    Run,
    RunMessage,
    Step,
    StoredRun,
    UnknownRunError,
    UnreadableRunError,
    finite_number,
    kept_seconds,
    reading_record,
)
from worker.runs.scripts import run_scripts
from worker.runs.state import RunState, StoredState, stored_json

S = TypeVar("S", bound=RunState)

_MESSAGES: dict[str, type[RunMessage]] = {"deploy": DeployMessage, "to_task": ToTaskMessage}


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
    priority: int
    position: int
    has_ended: bool

    @classmethod
    def of(cls, queue: str, priority: str | None, position: str | None, end: str | None) -> Self:
        """Read the fields. A damaged run stands at the beginning: its step finds that out."""
        try:
            return cls(queue, int(priority or 0), int(position or 0), end is not None)
        except ValueError:
            return cls(queue, 0, 0, end is not None)


@dataclass(frozen=True)
class CollectedMessage:
    """A message that a script is to publish to a queue in Redis, by `publish_messages` of `prelude.lua`."""

    keys: tuple[str, str]
    """The queue's list, or its delayed messages; and what says that an earlier one was added to those."""
    command: Literal["LPUSH", "RPUSH", "ZADD"]
    """RPUSH: the message is fetched before all that are in the queue. ZADD: it is delayed."""
    text: str
    countdown: float = 0.0
    """Seconds."""


class RunStore:
    """Reads and writes runs. Every change that two workers could race for is one script."""

    def __init__(
        self,
        redis: "Redis",
        heartbeat_grace_seconds: float = 0.0,
        *,
        has_webhook: bool = False,
        ended_runs_seconds: float = ENDED_RUNS_SECONDS,
    ) -> None:
        """`heartbeat_grace_seconds`: after them a heartbeat is overdue; for claims and ends.

        `has_webhook`: ends are sent to a webhook as well as to the backend. `ended_runs_seconds`: after them
        maintenance forgets an ended run, and a day later it expires where there is none.
        """
        self.redis = redis
        self._heartbeat_grace_seconds = heartbeat_grace_seconds
        self._has_webhook = has_webhook
        self._kept_seconds = kept_seconds(ended_runs_seconds)
        self._scripts = run_scripts(redis)

    # The beginning of a run and of its steps

    def accept(self, message: RunMessage, queue: str, priority: int = 0, traceparent: str = "") -> Acceptance:
        """Create the run of `message`, once a job; `queue` is where its steps go, with that priority.

        `traceparent`: the context of its trace.
        """
        content = message.model_dump(mode="json", exclude_unset=True, by_alias=True)
        job = message.job
        answer = self._scripts.run(
            "accept",
            [run_key(job), job_key(job), keys.stop_key(job)],
            stored_json({"task": message.task, "kwargs": content}),
            message.action,
            message.plugin,
            queue,
            STOPPED.to_json(),
            priority or "",
            self._kept_seconds,
            traceparent,
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
        return self.parse(job, stored)

    @staticmethod
    def parse(job: str, stored: Mapping[str, str]) -> StoredRun:
        """The run whose hash was read; raises `DamagedRunError` or `NewerRunError` as `load` does."""
        with reading_record(job):
            "".join(stored.values()).encode()  # raises where something is no UTF-8
            message = json.loads(stored[RunField.MESSAGE])
            task, kwargs = message["task"], message["kwargs"]
            queue, position = stored[RunField.QUEUE], int(stored[RunField.POSITION])
            priority = int(stored.get(RunField.PRIORITY, 0))
            ended = stored.get(RunField.ENDED)
            end = None if ended is None else End.from_json(ended)
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
            priority=priority,
            position=position,
            step=stored.get(RunField.STEP, ""),
            end=end,
            traceparent=stored.get(RunField.TRACEPARENT, ""),
        )

    def standings(self, jobs: Iterable[str]) -> list[Standing | None]:
        """Where these runs stand, read in one go; None for one that is gone."""
        with self.redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                fields = [RunField.QUEUE, RunField.PRIORITY, RunField.POSITION, RunField.ENDED]
                pipe.hmget(run_key(job), fields)
            found = pipe.execute()
        return [None if fields[0] is None else Standing.of(*fields) for fields in found]

    def languages(self, jobs: Iterable[str]) -> dict[str, str]:
        """The languages of these runs' messages, read in one go, without those that are gone."""
        found = self._message_fields(jobs, "language")
        return {job: str(language or "en") for job, language in found.items()}

    def tenants(self, jobs: Iterable[str]) -> dict[str, str | None]:
        """The tenants of these runs' messages, likewise."""
        found = self._message_fields(jobs, "tenant")
        return {job: None if tenant is None else str(tenant) for job, tenant in found.items()}

    def _message_fields(self, jobs: Iterable[str], name: str) -> dict[str, object]:
        jobs = list(jobs)
        with self.redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hget(run_key(job), RunField.MESSAGE)
            found = pipe.execute()
        fields: dict[str, object] = {}
        for job, message in zip(jobs, found, strict=True):
            with suppress(KeyError, TypeError, ValueError, RecursionError):
                fields[job] = json.loads(message)["kwargs"].get(name)
        return fields

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

        This is a heartbeat of the run.

        Raises `UnreadableRunError` as `load` does; the lock is free then.
        """
        name = f"{step.name}:{part}" if part else step.name
        lease = step_lease(job, name, token)
        heartbeats = [keys.heartbeats_key(), keys.overdue_counts_key()]
        status, is_retry, newest, died, *stored = self._scripts.run(
            "claim_step",
            [run_key(job), job_key(job), lease.key, keys.polls_key(job), *heartbeats],
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
            run_member(job),
            self._heartbeat_grace_seconds,
        )
        run = None
        if status == ClaimStatus.CLAIMED:
            try:
                run = self.parse(job, hash_of(stored[0]))
            except UnreadableRunError:
                self._scripts.run("release_lock", *release_arguments(lease))
                raise
            run = replace(run, is_retry=bool(is_retry), generation=generation, lease=lease)
        return StepClaim(ClaimStatus(status), int(newest), run, int(died))

    def end_step(
        self,
        job: str,
        lease: Lease,
        countdown: float,
        messages: Sequence[CollectedMessage] | None,
        stands_at: Step | None = None,
    ) -> bool:
        """Record a heartbeat, publish `messages` to the queues of this Redis, and release the step's lock.

        The next heartbeat is due after `countdown` seconds. `stands_at`: the run moves on to this step, which
        has no message of its own. False when the lock was lost, and nothing done.
        """
        polls, field = lease.deliveries or ("", "")
        heartbeats = [keys.heartbeats_key(), keys.overdue_counts_key()]
        names = [lease.key, polls, *heartbeats, run_key(job), job_key(job)]
        queues, texts = publishing_arguments(messages)
        due = countdown + self._heartbeat_grace_seconds
        standing = (stands_at.name, stands_at.position, stands_at.queue or "") if stands_at else ("", 0, "")
        args = [lease.token, field, run_member(job), due, *standing, *texts]
        return bool(self._scripts.run("end_step", names + queues, *args))

    def reschedule_step(
        self, run: AnyRun, name: str, countdown: float, messages: Sequence[CollectedMessage] | None = None
    ) -> int:
        """Announce the next generation of a step, record a heartbeat, and release the step's lock.

        Publish `messages`, of the generation after `run`'s, unless a newer one was announced with its own.
        The next heartbeat is due `countdown` seconds from now. Returns the generation, which the caller
        publishes when it has collected no messages.
        """
        lease = step_lease(run.job, name, run.lease.token if run.lease else "")
        heartbeats = [keys.heartbeats_key(), keys.overdue_counts_key()]
        queues, texts = publishing_arguments(messages)
        return int(
            self._scripts.run(
                "reschedule_step",
                [run_key(run.job), lease.key, keys.polls_key(run.job), *heartbeats, *queues],
                lease.token,
                keys.deliveries_field(name),
                keys.newest_field(name),
                run.generation,
                run_member(run.job),
                countdown + self._heartbeat_grace_seconds,
                *texts,
            )
        )

    def step_queue(self, job: str) -> str | None:
        """The queue that belongs to the step at which the run stands; None: the run's own."""
        return self.redis.hget(run_key(job), RunField.STEP_QUEUE) or None

    def mark_running(self, job: str) -> bool:
        """Show and publish the job as RUNNING, unless it has ended; true when the caller is to report it."""
        keys_ = [run_key(job), job_key(job), keys.outbox_key()]
        event = json.dumps({"type": "state", "status": JobStatus.RUNNING})
        channel = events_channel(job)
        return bool(self._scripts.run("mark_running", keys_, JobStatus.RUNNING, job, channel, event))

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

    def finish(self, job: str, end: End, step: Step | None = None) -> bool:
        """Write the end; false when the run had one already, is gone, or has passed `step`, which ends it.

        The end is published and logged, and enters the outbox, unless the backend has it already. A run that
        waits in a list leaves it.
        """
        return bool(self.finish_all([job], end, step))

    def finish_all(self, jobs: Sequence[str], end: End, step: Step | None = None) -> list[str]:
        """The same for many runs at once; returns those that this call has ended."""
        end = End(end.status, mask_secrets(end.result))
        lines = text_lines(f"{end.status} {end.error}".rstrip())
        names = [keys.heartbeats_key(), keys.overdue_counts_key(), keys.outbox_key(), keys.webhooks_key()]
        runs: list[str] = []
        for job in jobs:
            names += [*log_keys(job), job_key(job)]
            runs += [job, logs_channel(job), events_channel(job), run_member(job)]
        ended = self._scripts.run(
            LOG_SCRIPT,
            names,
            *log_args("finish", ""),
            line_time(),
            "error" if end.status is JobStatus.FAILED else "info",
            end.to_json(),
            end.status,
            end.error,
            "" if step is None else step.position,
            self._heartbeat_grace_seconds,
            json.dumps({"type": "state", "status": end.status, "error": end.error}),
            int(self._has_webhook),
            self._kept_seconds,
            len(lines),
            *lines,
            *runs,
        )
        actions = {job: action for job, action in zip(jobs, ended, strict=True) if action}
        for action in actions.values():
            metrics.count_ended(action, end.status)
        return list(actions)

    def seconds_since_end(self, job: str) -> float | None:
        """Seconds since the end was written; None for a run without an end."""
        if not self.redis.hexists(run_key(job), RunField.ENDED):
            return None
        return self.seconds_since_change(job)

    def seconds_since_change(self, job: str) -> float:
        """Seconds since the run's public record changed; very many where it does not say it."""
        updated = finite_number(self.redis.hget(job_key(job), "updated"))
        return redis_time(self.redis) - (updated or 0.0)

    def remember_stop(self, job: str) -> None:
        """Keep a stop that came before its job's message for a day."""
        self.redis.set(keys.stop_key(job), 1, ex=RETENTION_SECONDS)

    def expire_with_run(self, job: str, *names: str) -> None:
        """Let further keys of a workflow expire with the run."""
        self.redis.sadd(keys.workflow_keys_key(job), *names)

    # What the backend has

    def mark_reported(self, job: str) -> bool:
        """The backend has the end: nothing more will be sent to it, and the run's keys expire in a day.

        At once, because a reported run without expiry would stay for ever. True when the webhook is to have
        the end now, which the caller sends.
        """
        names = [
            *log_keys(job),
            keys.outbox_key(),
            keys.ended_logs_key(),
            keys.heartbeats_key(),
            keys.overdue_counts_key(),
            keys.webhooks_key(),
            keys.workflow_keys_key(job),
            job_key(job),
            keys.progress_key(job),
            keys.messages_key(job),
            keys.polls_key(job),
        ]
        arguments = log_args("mark_reported", job, job, run_member(job))
        return bool(self._scripts.run(LOG_SCRIPT, names, *arguments))

    def is_reported(self, job: str) -> bool:
        """Whether the backend has the end (or the run is gone)."""
        return bool(self.redis.hexists(run_key(job), RunField.REPORTED)) or not self.exists(job)


def publishing_arguments(
    messages: Sequence[CollectedMessage] | None,
) -> tuple[list[str], list[str | float]]:
    """The last keys and the last arguments of a script that publishes these messages."""
    messages = messages or ()
    queues = [key for message in messages for key in message.keys]
    return queues, [part for each in messages for part in (each.command, each.countdown, each.text)]


def hash_of(flat: Sequence[str]) -> dict[str, str]:
    """The hash that a script returns as a list: each name before its value."""
    return dict(zip(flat[::2], flat[1::2], strict=True))
