"""The waiting room of a pre-processor in Redis: who waits until when, the poll in the air, the dispatch.

A hash with `generation`, `polled` and `polling` of the poll and the fields of the dispatch, and a sorted set
of waiters by deadline (Redis's clock). What two workers could race for is one script.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from redis import Redis

from worker.lua import Scripts
from worker.pre_processor.names import RoomName

DAY_SECONDS = 86_400
UNSENT_CLAIM_SECONDS = 20
"""Who claimed the dispatch and sent nothing for so long may be dead; sending late is refused to it then."""

_DISPATCH_FIELDS = (
    "token", "by", "claimed", "sent", "snapshot", "job", "ended", "doubtful", "failure", "unclear",
    "silent", "looked",
)  # fmt: skip


@dataclass(frozen=True)
class Joined:
    """`poll` is the generation of a poll to start, or 0; `claim` the token of who is to dispatch, or None."""

    poll: int
    claim: str | None
    first: bool
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
    doubtful: bool = False
    failure: str | None = None
    unclear: bool = False
    by: str = ""
    """The run whose step dispatches."""
    silent: float | None = None
    """When a poll first found that nobody waits for its answer; `looked`: when the last one did."""
    looked: float | None = None


class Room:
    """One pre-processor's room."""

    def __init__(self, redis: "Redis", name: RoomName) -> None:
        self.name = name
        self._redis = redis
        self._scripts = Scripts(redis, "worker.pre_processor")
        self._hash = f"synapse:rooms:{{{name.key}}}:room"
        self._waiters = f"synapse:rooms:{{{name.key}}}:waiters"
        self.lock = f"synapse:rooms:{{{name.key}}}:lock"

    def join(self, job: str, timeout: float, *, again: bool = False) -> Joined:
        """Wait in the room, at most `timeout` seconds from the first time on."""
        token = uuid4().hex
        started, claimed, first, dispatched = self._scripts.run(
            "join",
            [self._hash, self._waiters],
            job,
            timeout,
            int(again),
            token,
            UNSENT_CLAIM_SECONDS,
            DAY_SECONDS,
            *_DISPATCH_FIELDS,
        )
        return Joined(int(started), token if claimed else None, bool(first), dispatched or None)

    def waiters(self) -> list[tuple[str, float]]:
        """Who waits, with deadlines, the next to be due first."""
        found = self._redis.zrange(self._waiters, 0, -1, withscores=True)
        return [(str(job), float(deadline)) for job, deadline in found]

    def leave(self, *jobs: str) -> None:
        """These wait no longer."""
        if jobs:
            self._redis.zrem(self._waiters, *jobs)

    def now(self) -> float:
        """Redis's clock."""
        seconds, microseconds = self._redis.time()
        return float(seconds + microseconds / 1e6)

    def begin_poll(self, generation: int, redelivered: bool) -> tuple[str, int]:
        """`begun`, `stale` or `republish`, and the newest generation."""
        said, newest = self._scripts.run("begin_poll", [self._hash], generation, int(redelivered))
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

    def amend(self, token: str, **fields: str | float) -> bool:
        """Write down more about the dispatch `token`; false when it is no longer the room's."""
        pairs = [item for pair in fields.items() for item in pair]
        return bool(self._scripts.run("amend", [self._hash], token, *pairs))

    def adopt(self, job: str) -> bool:
        """`job` deploys what this room waits for; true when the room's dispatch did not know its job yet."""
        return bool(self._scripts.run("adopt", [self._hash], job))

    def hear(self) -> None:
        """A deployment's message was read: a dispatch that does not know its job has its time once more."""
        self._scripts.run("hear", [self._hash])

    def forget_dispatch(self, token: str) -> bool:
        """Let the next who joins dispatch anew; false when it is no longer the room's."""
        return bool(self._scripts.run("forget", [self._hash], token, *_DISPATCH_FIELDS))


def _dispatch(stored: Mapping[str, Any]) -> Dispatch:
    return Dispatch(
        token=stored["token"],
        claimed=float(stored["claimed"]),
        sent=float(stored["sent"]) if "sent" in stored else None,
        job=stored.get("job"),
        snapshot=json.loads(stored.get("snapshot", "{}")),
        ended=float(stored["ended"]) if stored.get("ended") else None,
        doubtful=stored.get("doubtful") == "1",
        failure=stored.get("failure") or None,
        unclear=stored.get("unclear") == "1",
        by=stored.get("by", ""),
        silent=float(stored["silent"]) if "silent" in stored else None,
        looked=float(stored["looked"]) if "looked" in stored else None,
    )
