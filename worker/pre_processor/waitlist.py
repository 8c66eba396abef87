"""The waiting list of a pre-processor: who waits until when, the poll that is scheduled, the dispatch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import quote, unquote
from uuid import uuid4

from pydantic import AfterValidator
from redis import Redis

from shared.statuses import JobStatus
from worker.lua import Scripts
from worker.pre_processor.serve_application import PreProcessor
from worker.runs.heartbeat import run_member
from worker.runs.keys import run_key
from worker.runs.model import End, Step
from worker.runs.runs import Runs

DETECT = Step("pre_processor.detect", position=30)
DISPATCH = Step("pre_processor.dispatch", position=35)

READY = Step("to_task.fetch_tasks", position=50)
"""Where a run goes on whose pre-processor runs."""

AWAIT_READY = Step("pre_processor.await_ready", position=0, queue="to_task")
"""The poll of a room: not a step of a run."""


WAITLIST_PREFIX = "room:"
"""Members of the live set that are rooms."""


@dataclass(frozen=True)
class WaitlistName:
    """`tenant` is empty where none is set."""

    tenant: str
    agent: int
    code: str
    version: str

    @classmethod
    def of(cls, tenant: str | None, target: PreProcessor) -> "WaitlistName":
        """The room of those who wait for `target`."""
        return cls(tenant or "", target.agent, target.code, target.version)

    @property
    def key(self) -> str:
        """The name as text, in messages and keys; no part of it can be taken for another."""
        return f"{_quoted(self.tenant)}:{self.agent}:{_quoted(self.code)}@{_quoted(self.version)}"

    @classmethod
    def parse(cls, key: str) -> "WaitlistName":
        """The inverse of `key`."""
        tenant, agent, release = key.split(":")
        code, version = release.split("@")
        return cls(unquote(tenant), int(agent), unquote(code), unquote(version))

    @property
    def target(self) -> PreProcessor:
        """What is waited for; its config is not part of the name."""
        return PreProcessor(self.code, self.version, {}, self.agent)

    @property
    def member(self) -> str:
        """The room among the live."""
        return f"{WAITLIST_PREFIX}{self.key}"


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _is_key(value: str) -> str:
    WaitlistName.parse(value)  # which raises ValueError
    return value


WaitlistKey = Annotated[str, AfterValidator(_is_key)]
"""The name of a room as text, in messages."""


DAY_SECONDS = 86_400
UNSENT_CLAIM_SECONDS = 20
"""Who claimed the dispatch and sent nothing for so long may be dead; sending late is refused to it then."""

_DISPATCH_FIELDS = (
    "token", "by", "claimed", "sent", "snapshot", "job", "ended", "doubtful", "failure", "unclear",
    "silent", "looked",
)  # fmt: skip


@dataclass(frozen=True)
class JoinResult:
    """`poll` is the generation of a poll to start, or 0; `claim` the token of who is to dispatch, or None."""

    poll: int
    claim: str | None
    is_new: bool
    job: str | None


@dataclass(frozen=True)
class Dispatch:
    """What is known of the deployment that somebody in this room asked for. Times are Redis's."""

    token: str
    claimed: float
    sent: float | None = None
    job: str | None = None
    snapshot: dict[str, str] = field(default_factory=dict)
    ended: float | None = None
    job_unverified: bool = False
    failure: str | None = None
    maybe_accepted: bool = False
    by: str = ""
    """The run whose step dispatches."""
    no_reply_since: float | None = None
    """When a poll first found that nobody waits for its answer; `looked`: when the last one did."""
    last_polled: float | None = None


class Waitlist:
    """One pre-processor's room."""

    def __init__(self, redis: "Redis", name: WaitlistName) -> None:
        self.name = name
        self._redis = redis
        self._scripts = Scripts(redis, "worker.pre_processor")
        self._hash = f"synapse:rooms:{{{name.key}}}:room"
        self._waiters = f"synapse:rooms:{{{name.key}}}:waiters"
        self.lock = f"synapse:rooms:{{{name.key}}}:lock"

    def join(self, job: str, timeout: float, *, is_retry: bool = False) -> JoinResult:
        """Wait in the room, at most `timeout` seconds from the first time on."""
        token = uuid4().hex
        started, claimed, first, dispatched = self._scripts.run(
            "join",
            [self._hash, self._waiters],
            job,
            timeout,
            int(is_retry),
            token,
            UNSENT_CLAIM_SECONDS,
            DAY_SECONDS,
            *_DISPATCH_FIELDS,
        )
        return JoinResult(int(started), token if claimed else None, bool(first), dispatched or None)

    def waiters(self) -> list[tuple[str, float]]:
        """Who waits, with deadlines, the next to be due first."""
        found = self._redis.zrange(self._waiters, 0, -1, withscores=True)
        return [(str(job), float(deadline)) for job, deadline in found]

    def remove(self, *jobs: str) -> None:
        """These wait no longer."""
        if jobs:
            self._redis.zrem(self._waiters, *jobs)

    def now(self) -> float:
        """Redis's clock."""
        seconds, microseconds = self._redis.time()
        return float(seconds + microseconds / 1e6)

    def claim_poll(self, generation: int, redelivered: bool) -> tuple[str, int]:
        """`begun`, `stale` or `republish`, and the newest generation."""
        said, newest = self._scripts.run("claim_poll", [self._hash], generation, int(redelivered))
        return str(said), int(newest)

    def end_poll(self, generation: int) -> tuple[str, int]:
        """`again` with the next generation, `ended` when nobody waits, `superseded` by a newer poll."""
        said, following = self._scripts.run("end_poll", [self._hash, self._waiters], generation, DAY_SECONDS)
        return str(said), int(following)

    def wake(self) -> int:
        """The generation of a poll to publish now; 0 when nobody waits."""
        return int(self._scripts.run("wake", [self._hash, self._waiters]))

    def dispatch(self) -> Dispatch | None:
        """The dispatch that was claimed, or None."""
        stored = self._redis.hgetall(self._hash)
        return _dispatch(stored) if "token" in stored else None

    def update_dispatch(self, token: str, **fields: str | float) -> bool:
        """Write down more about the dispatch `token`; false when it is no longer the room's."""
        pairs = [item for pair in fields.items() for item in pair]
        return bool(self._scripts.run("update_dispatch", [self._hash], token, *pairs))

    def set_job(self, job: str) -> bool:
        """`job` deploys what this room waits for; true when the room's dispatch did not know its job yet."""
        return bool(self._scripts.run("set_job", [self._hash], job))

    def extend_deadline(self) -> None:
        """A deployment's message was read: a dispatch that does not know its job has its time once more."""
        self._scripts.run("extend_deadline", [self._hash])

    def clear_dispatch(self, token: str) -> bool:
        """Let the next who joins dispatch anew; false when it is no longer the room's."""
        return bool(self._scripts.run("clear_dispatch", [self._hash], token, *_DISPATCH_FIELDS))


def _dispatch(stored: Mapping[str, Any]) -> Dispatch:
    return Dispatch(
        token=stored["token"],
        claimed=float(stored["claimed"]),
        sent=float(stored["sent"]) if "sent" in stored else None,
        job=stored.get("job"),
        snapshot=json.loads(stored.get("snapshot", "{}")),
        ended=float(stored["ended"]) if stored.get("ended") else None,
        job_unverified=stored.get("doubtful") == "1",
        failure=stored.get("failure") or None,
        maybe_accepted=stored.get("unclear") == "1",
        by=stored.get("by", ""),
        no_reply_since=float(stored["silent"]) if "silent" in stored else None,
        last_polled=float(stored["looked"]) if "looked" in stored else None,
    )


FIRST_SECONDS = 0.5
GROWTH = 1.5


def schedule_poll(runs: Runs, name: WaitlistName, generation: int, countdown: float = 0.0) -> None:
    """Send the poll of `generation`; a sign of life of the room is due."""
    runs.heartbeats.schedule(name.member, countdown)
    kwargs = {"room": name.key, "generation": generation}
    runs.publisher.publish(AWAIT_READY, AWAIT_READY.queue or "to_task", kwargs, countdown)


def wake(runs: Runs, name: WaitlistName) -> bool:
    """Something happened that a room waits for: poll now. False when nobody waits."""
    generation = Waitlist(runs.redis, name).wake()
    if generation:
        schedule_poll(runs, name, generation)
    return bool(generation)


def poll_backoff(attempt: int, ceiling: float) -> float:
    """Seconds until the next poll: half a second at first, growing."""
    return min(FIRST_SECONDS * GROWTH ** min(attempt, 50), ceiling)


def recover_waitlist(key: str, runs: Runs) -> None:
    """Publish a poll of a new generation; forget a room in which nobody waits."""
    name = WaitlistName.parse(key)
    if not wake(runs, name):
        runs.heartbeats.remove(name.member)


@dataclass(frozen=True)
class Waiter:
    """A run that waits; `deadline` is Redis's time, `queue` where its messages go."""

    job: str
    deadline: float
    queue: str


def active_waiters(room: Waitlist, runs: Runs) -> list[Waiter]:
    """Who waits, the next to be due first; runs that ended or went on meanwhile leave."""
    waiters = room.waiters()
    with runs.redis.pipeline(transaction=False) as pipe:
        for job, _ in waiters:
            pipe.hmget(run_key(job), ["queue", "end", "position"])
        found = pipe.execute()
    here = [
        Waiter(job, deadline, str(queue))
        for (job, deadline), (queue, end, position) in zip(waiters, found, strict=True)
        if queue is not None and end is None and int(position) <= DISPATCH.position
    ]
    staying = {waiter.job for waiter in here}
    for (job, _), (_, end, _) in zip(waiters, found, strict=True):
        if end is not None:
            runs.ensure_end_reported(job)  # who wrote the end may have died before it was on its way
    room.remove(*(job for job, _ in waiters if job not in staying))
    return here


def resume(waiters: list[Waiter], room: Waitlist, runs: Runs) -> None:
    """The pre-processor runs. Each leaves after its message is out: who dies in between sends it again."""
    for waiter in waiters:
        runs.heartbeats.schedule(run_member(waiter.job))
        _send(READY, waiter, {}, runs)
        room.remove(waiter.job)


def fail(waiters: list[Waiter], message: str, room: Waitlist, runs: Runs) -> None:
    """Their runs end with `message`."""
    for waiter in waiters:
        runs.finish(waiter.job, End(JobStatus.FAILED, {"error": message}))
        room.remove(waiter.job)


def redispatch(waiters: list[Waiter], runs: Runs) -> None:
    """Who has the most time left joins again; joining gives the claim to one, however often this is sent."""
    waiter = waiters[-1]
    _send(DISPATCH, waiter, {"generation": runs.store.current_generation(waiter.job, DISPATCH.name)}, runs)


def _send(step: Step, waiter: Waiter, kwargs: dict[str, int], runs: Runs) -> None:
    runs.publisher.publish(step, step.queue or waiter.queue, {"job": waiter.job, **kwargs})
