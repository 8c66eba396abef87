"""Which logs are to be followed, and who follows them: in Redis, so that a relay's death loses nothing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from shared.messages import TailLogsMessage
from worker.lua import Scripts
from worker.platform.streams import StreamProtocol
from worker.runs.events import SCRIPT, log_args, log_keys, now
from worker.runs.scripts import run_scripts

OPEN: Final = "synapse:{logs}:open"
"""Sorted set: every booking, by the time (Redis's clock) until which a relay's claim on it holds."""

OWNERS: Final = "synapse:{logs}:owners"
"""Hash: the claim that holds, by booking."""

LAST_CLAIM: Final = "synapse:{logs}:last_claim"

_HERE: Final = "worker.logs"


@dataclass(frozen=True, slots=True)
class Booking:
    """One log that is to be followed for a job."""

    job: str
    ray_job: str

    @classmethod
    def of(cls, name: str) -> "Booking":
        """The booking of that name."""
        return cls(*name.split("/", 1))

    @property
    def name(self) -> str:
        """Neither id can hold the separator."""
        return f"{self.job}/{self.ray_job}"


@dataclass(frozen=True, slots=True)
class Claim:
    """A relay's right to follow a booking, while no other has a newer one."""

    booking: Booking
    number: str


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where to go on: after `position` lines of the log, at `agent` by `protocol`."""

    position: int
    agent: int | None
    protocol: StreamProtocol


def book(redis: "Redis", message: TailLogsMessage, longest: int) -> bool:
    """Have the log followed; false when that is over already. A second booking changes nothing.

    `longest` is how many entries the job's history must be able to hold.
    """
    booking = Booking(message.job, message.ray_job)
    how = json.dumps({"agent": message.agent, "protocol": message.protocol})
    arguments = log_args("book", booking.job, booking.ray_job, how, longest=longest)
    if not run_scripts(redis).run(SCRIPT, log_keys(booking.job), *arguments):
        return False
    # After the job's own entry: who dies in between comes back with its message and does both again.
    redis.zadd(OPEN, {booking.name: 0}, nx=True)
    return True


class Claims:
    """Bookings as a relay handles them."""

    def __init__(self, redis: "AsyncRedis", seconds: float) -> None:
        """`seconds` without a sign of life make a claim free for others."""
        self._seconds = seconds
        self._own = Scripts(redis, _HERE)
        self._logs = run_scripts(redis)

    async def take(self, most: int) -> list[Claim]:
        """Bookings that nobody follows, now this relay's."""
        taken = await self._own.run("take", [OPEN, OWNERS, LAST_CLAIM], self._seconds, most)
        return [Claim(Booking.of(name), number) for name, number in taken]

    async def renew(self, claims: Mapping[str, Claim]) -> list[str]:
        """Keep these (by name of booking); returns the names of those that another relay has taken."""
        pairs = [part for name, claim in claims.items() for part in (name, claim.number)]
        return list(await self._own.run("renew", [OPEN, OWNERS], self._seconds, *pairs)) if pairs else []

    async def let_go(self, claim: Claim, *, over: bool) -> None:
        """The log is over, or another relay is to go on at once."""
        arguments = (claim.booking.name, claim.number, "1" if over else "")
        await self._own.run("let_go", [OPEN, OWNERS], *arguments)

    async def begin(self, claim: Claim) -> Beginning | None:
        """Shut out whoever followed before; None when the log is over or a newer claim has begun."""
        found = await self._log(claim, "begin")
        if not found:
            return None
        how = json.loads(found[1])
        return Beginning(int(found[0]), how["agent"], how["protocol"])

    async def close(self, claim: Claim, reason: str, last_word: str = "") -> bool:
        """No more lines of this log will come. False when the claim was lost."""
        return bool(await self._log(claim, "close", reason, now(), last_word))

    async def _log(self, claim: Claim, operation: str, *own: str) -> Any:
        booking = claim.booking
        arguments = log_args(operation, booking.job, booking.ray_job, claim.number, *own)
        return await self._logs.run(SCRIPT, log_keys(booking.job), *arguments)
