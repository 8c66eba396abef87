"""The waiting list of a pre-processor in Redis: the runs and their deadlines, the poll, the dispatch."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, TypeAlias
from urllib.parse import quote, unquote
from uuid import uuid4

from pydantic import AfterValidator
from redis import Redis

from shared.channels import RETENTION_SECONDS, job_key, redis_prefix
from shared.messages import ToTaskMessage
from worker.lua import redis_time
from worker.platform import shorten
from worker.pre_processor.decision import (
    DISPATCH_FIELD_NAMES,
    UNSENT_CLAIM_SECONDS,
    Dispatch,
    stored_fields,
)
from worker.pre_processor.serve_application import PreProcessor
from worker.runs.generations import GenerationClaim
from worker.runs.keys import run_key
from worker.runs.model import ClaimStatus, Run, RunFailedError, Step, Workflow
from worker.runs.runs import Runs
from worker.runs.scripts import run_scripts
from worker.runs.state import stored_field
from worker.runs.store import CollectedMessage, publishing_arguments
from worker.workflow.intake import WorkflowState


@dataclass(frozen=True)
class PreProcessorState(WorkflowState):
    """What the steps of a run leave for each other that needs a pre-processor."""

    pre_processor: PreProcessor | None = stored_field(
        "pre_processor", None, decode=PreProcessor.from_json, encode=PreProcessor.to_json
    )


PRE_PROCESSOR = Workflow(ToTaskMessage, PreProcessorState)
PreProcessorRun: TypeAlias = Run[ToTaskMessage, PreProcessorState]

DETECT = PRE_PROCESSOR.step("pre_processor.detect", position=30)
DISPATCH = PRE_PROCESSOR.step("pre_processor.dispatch", position=35)


def pre_processor_of(run: PreProcessorRun) -> PreProcessor:
    """The run's pre-processor, which `detect` has stored."""
    if run.state.pre_processor is None:
        raise RunFailedError(f"job {run.job} has no pre-processor")
    return run.state.pre_processor


FETCH_TASKS = Step("to_task.fetch_tasks", position=50)
"""The step with which a run goes on once its pre-processor runs."""

AWAIT_READY = Step("pre_processor.await_ready", position=0, queue="to_task")
"""The poll of a waiting list. It belongs to no run, so it has no position."""

WAITLIST_PREFIX = "room:"
"""Begins the heartbeat member of a waiting list. Older workers read it, and the keys below, by this word."""


FIRST_POLL_SECONDS = 0.5

MAX_WAITING_FOR_CHARS = 60
"""Of what the public record says about the wait: a longer text would take a kilobyte more of Redis."""


@dataclass(frozen=True)
class WaitlistName:
    """The pre-processor that runs wait for: `code@version` on an agent's cluster.

    Tenants have waiting lists of their own; `tenant` is empty where none is set.
    """

    tenant: str
    agent: int
    code: str
    version: str

    @classmethod
    def of(cls, tenant: str | None, target: PreProcessor) -> "WaitlistName":
        """The waiting list for `target`."""
        return cls(tenant or "", target.agent, target.code, target.version)

    @property
    def key(self) -> str:
        """The name as text, in messages and keys. Its parts are quoted, so that `parse` is unambiguous."""
        return f"{_quoted(self.tenant)}:{self.agent}:{_quoted(self.code)}@{_quoted(self.version)}"

    @classmethod
    def parse(cls, key: str) -> "WaitlistName":
        """The inverse of `key`; raises `ValueError`."""
        tenant, agent, release = key.split(":")
        code, version = release.split("@")
        return cls(unquote(tenant), int(agent), unquote(code), unquote(version))

    @property
    def target(self) -> PreProcessor:
        """The pre-processor; its config is not part of the name, and left empty."""
        return PreProcessor(self.code, self.version, {}, self.agent)

    @property
    def member(self) -> str:
        """Its member of the heartbeats."""
        return f"{WAITLIST_PREFIX}{self.key}"


def waitlists_key() -> str:
    """Set: the `WaitlistName.key` of each list in which runs wait."""
    return f"{redis_prefix()}:rooms"


def waiting_runs(redis: "Redis") -> dict[WaitlistName, int]:
    """How many runs wait in each list. It costs by the pre-processors, and not by the runs."""
    names = []
    for name in redis.smembers(waitlists_key()):
        with suppress(ValueError):
            names.append(WaitlistName.parse(str(name)))
    with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.zcard(_waiters_key(name))
        return dict(zip(names, pipe.execute(), strict=True))


def waiting_deadlines(redis: "Redis") -> dict[str, float]:
    """Until when each waiting run waits at most, by job, in three round trips."""
    with redis.pipeline(transaction=False) as pipe:
        for name in waiting_runs(redis):
            pipe.zrange(_waiters_key(name), 0, -1, withscores=True)
        return {str(job): float(deadline) for found in pipe.execute() for job, deadline in found}


def _key_of(name: WaitlistName) -> str:
    return f"{waitlists_key()}:{{{name.key}}}"


def _waiters_key(name: WaitlistName) -> str:
    return f"{_key_of(name)}:waiters"


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _is_key(value: str) -> str:
    WaitlistName.parse(value)
    return value


WaitlistKey = Annotated[str, AfterValidator(_is_key)]
"""The `key` of a `WaitlistName` in a message's arguments, validated."""


@dataclass(frozen=True)
class JoinResult:
    """What a run finds when it joins."""

    poll: int
    """The generation of the poll that the run is to publish; 0 when one is under way."""
    claim: str | None
    """The token with which the run is to dispatch; None when another run does."""
    is_new: bool
    """Whether the run was not on the list before."""
    job: str | None
    """The dispatched job, where it is known."""


class Waitlist:
    """Reads and writes one waiting list. Every change that two workers could race for is one script."""

    def __init__(self, redis: "Redis", name: WaitlistName) -> None:
        self.name = name
        self._redis = redis
        self._scripts = run_scripts(redis, "worker.pre_processor")
        key = _key_of(name)
        self._hash = f"{key}:room"
        self._waiters = _waiters_key(name)
        self.lock = f"{key}:lock"

    def join(self, job: str, timeout: float, *, is_retry: bool = False) -> JoinResult:
        """Add a run, which waits `timeout` seconds at most from the first time that it joins."""
        token = uuid4().hex
        started, claimed, first, dispatched = self._scripts.run(
            "join",
            [self._hash, self._waiters, run_key(job), job_key(job), waitlists_key()],
            job,
            timeout,
            int(is_retry),
            token,
            UNSENT_CLAIM_SECONDS,
            RETENTION_SECONDS,
            DISPATCH_FIELD_NAMES,
            shorten(f"pre-processor {self.name.target.release}", MAX_WAITING_FOR_CHARS),
            self.name.key,
        )
        return JoinResult(int(started), token if claimed else None, bool(first), dispatched or None)

    def waiters(self, limit: int = 0, overdue_at: float = math.inf) -> list[str]:
        """The jobs of the runs that wait, the earliest deadline first; `limit` is 0 for all of them.

        `overdue_at`: only those whose deadline is not later.
        """
        found = self._redis.zrangebyscore(self._waiters, "-inf", overdue_at, start=0, num=limit or -1)
        return [str(job) for job in found]

    def latest(self) -> str | None:
        """The job of the run that may wait longest; None when no run waits."""
        found = self._redis.zrange(self._waiters, -1, -1)
        return str(found[0]) if found else None

    def earliest_deadline(self) -> float | None:
        """When the first of the runs is overdue, by Redis's clock; None when no run waits."""
        found = self._redis.zrange(self._waiters, 0, 0, withscores=True)
        return float(found[0][1]) if found else None

    def without_diagnosis(self, timeout: float, limit: int) -> dict[str, float]:
        """The next runs that have seen a poll and got no diagnosis, with their deadlines.

        The order of the deadlines is that in which they joined, `timeout` seconds before.
        """
        last, polled_at = self._redis.hmget(self._hash, "diagnosed_to", "polled_at")
        if polled_at is None:
            return {}
        joined = float(polled_at) + timeout
        found = self._redis.zrangebyscore(
            self._waiters, f"({last or 0}", joined, start=0, num=limit, withscores=True
        )
        return {str(job): float(deadline) for job, deadline in found}

    def mark_diagnosed(self, deadline: float) -> None:
        """The runs whose deadline is not later have got their diagnosis."""
        self._redis.hset(self._hash, "diagnosed_to", repr(deadline))

    def mark_polled(self, now: float) -> None:
        """The runs that have joined before `now` have seen a poll."""
        self._redis.hset(self._hash, "polled_at", repr(now))

    def remove(self, *jobs: str) -> None:
        """Take runs off the list."""
        if jobs:
            self._redis.zrem(self._waiters, *jobs)

    def resume(self, jobs: Sequence[str], messages: Sequence[CollectedMessage] | None) -> None:
        """Publish these messages and take the runs off the list, at once."""
        queues, texts = publishing_arguments(messages)
        self._scripts.run("resume", [self._waiters, *queues], len(jobs), *jobs, *texts)

    def now(self) -> float:
        """Redis's clock."""
        return redis_time(self._redis)

    def claim_poll(self, generation: int, redelivered: bool) -> GenerationClaim:
        """A poll begins."""
        status, newest = self._scripts.run("claim_poll", [self._hash], generation, int(redelivered))
        return GenerationClaim(ClaimStatus(status), int(newest))

    def end_poll(self, generation: int) -> tuple[str, int]:
        """`again` with the next generation, `ended` when nobody waits, `superseded` by a newer poll."""
        said, following = self._scripts.run(
            "end_poll",
            [self._hash, self._waiters, waitlists_key()],
            generation,
            RETENTION_SECONDS,
            self.name.key,
        )
        return str(said), int(following)

    def wake(self) -> int:
        """The generation of a poll to publish now; 0 when nobody waits."""
        return int(self._scripts.run("wake", [self._hash, self._waiters, waitlists_key()], self.name.key))

    def dispatch(self) -> Dispatch | None:
        """The dispatch that a run has claimed, or None."""
        return Dispatch.from_hash(self._redis.hgetall(self._hash))

    def mark_sent(self, token: str, snapshot: Mapping[str, str]) -> bool:
        """The owner of `token` is about to send the request; false when the claim is no longer its own."""
        return self._update(token, {"sent_at": self.now(), "snapshot": snapshot})

    def mark_known(self, token: str, job: str) -> None:
        """The backend has answered the request with `job`."""
        self._update(token, {"job": job})

    def mark_failed(self, token: str, message: str, *, maybe_accepted: bool) -> bool:
        """The request has failed; a deployment that may come of it has its time from now on.

        False when the claim is no longer the caller's own.
        """
        values = {"failure": message, "maybe_accepted": maybe_accepted, "sent_at": self.now()}
        return self._update(token, values)

    def save_dispatch(self, before: Dispatch, after: Dispatch | None) -> None:
        """Write what a poll changed, None to clear, unless another run has claimed the dispatch since."""
        if after is None:
            self.clear_dispatch(before.token)
        elif changes := before.changes(after):
            self._update(before.token, changes)

    def clear_dispatch(self, token: str) -> None:
        """Let the next run that joins claim a new dispatch, unless `token` is no longer the claim."""
        self._scripts.run("clear_dispatch", [self._hash], DISPATCH_FIELD_NAMES, token)

    def set_job(self, job: str) -> bool:
        """The run of the deployment `job` has begun; true when the dispatch lacked its job until now."""
        return bool(self._scripts.run("set_job", [self._hash], DISPATCH_FIELD_NAMES, job))

    def extend_deadline(self) -> None:
        """A deployment's message was read: a dispatch that lacks its job has its full time again."""
        self._scripts.run("extend_deadline", [self._hash], DISPATCH_FIELD_NAMES)

    def _update(self, token: str, values: Mapping[str, object]) -> bool:
        pairs = [item for pair in stored_fields(values).items() for item in pair]
        return bool(self._scripts.run("update_dispatch", [self._hash], DISPATCH_FIELD_NAMES, token, *pairs))


def schedule_poll(
    runs: Runs,
    name: WaitlistName,
    generation: int,
    countdown: float = 0.0,
    running_at: float | None = None,
) -> None:
    """Publish the poll of `generation` and expect its heartbeat.

    `running_at`: when, by Redis's clock, the publisher knew that the pre-processor runs.
    """
    runs.heartbeats.schedule(name.member, countdown)
    kwargs: dict[str, object] = {"room": name.key, "generation": generation}
    if running_at is not None:
        kwargs["running_at"] = running_at
    runs.publisher.publish(AWAIT_READY, AWAIT_READY.queue or "to_task", kwargs, countdown)


def wake(runs: Runs, name: WaitlistName, *, is_running: bool = False) -> bool:
    """Poll now, because the pre-processor may run or its dispatch has failed. False when no run waits.

    `is_running`: the caller knows that it runs, so that the poll need not ask the backend.
    """
    waitlist = Waitlist(runs.redis, name)
    generation = waitlist.wake()
    if generation:
        schedule_poll(runs, name, generation, running_at=waitlist.now() if is_running else None)
    return bool(generation)


def recover_waitlist(key: str, runs: Runs) -> None:
    """Publish the poll of an overdue waiting list again, or drop its heartbeat when no run waits."""
    name = WaitlistName.parse(key)
    if not wake(runs, name):
        runs.heartbeats.remove(name.member)
