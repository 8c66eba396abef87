"""Slots of tenants in Redis: their holders, and the messages of those that wait for one."""

from dataclasses import dataclass
from enum import StrEnum

from redis import Redis

from shared.channels import job_key, redis_prefix
from worker.runs.keys import run_key
from worker.runs.scripts import run_scripts
from worker.runs.store import CollectedMessage


class Share(StrEnum):
    """What a tenant has a limited number of."""

    CHUNKS = "chunks"
    RUNS = "runs"


class Taken(StrEnum):
    """Whether there is a slot."""

    HAS = "has"
    FULL = "full"
    """There is none, and no message was given that could wait."""
    WAITS = "waits"
    """There is none, and the message is published once there is one."""


def tenants_key(share: Share) -> str:
    """Set: the tenants for whose slots somebody waits."""
    return f"{redis_prefix()}:tenants:{share}"


def slots_key(share: Share, tenant: str, what: str = "slots") -> str:
    """Sorted set: the holders of a tenant's slots, or those `waiting`; hash: the `messages` of these."""
    return f"{redis_prefix()}:tenants:{share}:{what}:{tenant}"


@dataclass(frozen=True)
class Waits:
    """How a holder waits: with its message, unless that comes again by itself, and what the record says."""

    message: CollectedMessage | None
    waiting_for: str = ""


class Slots:
    """The slots of one share, of all tenants. A call costs the same however many of them there are.

    A holder is the key of a chunk's lock, or of a run: it has its slot until it gives that back, or is gone.
    """

    def __init__(self, redis: "Redis", share: Share, most: int, *, has_queues: bool = True) -> None:
        """`most`: slots of a tenant. `has_queues`: whether the queues are in this Redis."""
        self.share, self.most = share, most
        self._has_queues = has_queues
        self._redis = redis
        self._scripts = run_scripts(redis, "worker.runs.shares")

    def take(self, tenant: str, holder: str, job: str, waits: Waits | None = None) -> Taken:
        """Take a slot for `holder`, which is of the run of `job`, unless those that wait come first."""
        wait = ("", "", "", "")
        if waits is not None:
            sent = waits.message
            message = (sent.command, sent.keys[0], sent.text) if sent is not None else ("", "", "")
            wait = (*message, waits.waiting_for)
        return Taken(str(self._run("take", tenant, [run_key(job), job_key(job)], holder, *wait)))

    def free(self, tenant: str, holder: str, token: str = "") -> None:
        """Give a slot back: the one that has waited longest gets it.

        `token`: by which a chunk's delivery holds the lock; one that has lost it gives nothing back.
        """
        self._run("free", tenant, [], holder, token)

    def hand_out(self) -> None:
        """Give the slots whose holders are gone to those that wait."""
        for tenant in self._redis.smembers(tenants_key(self.share)):
            self._run("hand_out", str(tenant), [])

    def publish_waiting(self) -> None:
        """Publish what has waited since there was a limit, some messages of each tenant at a time."""
        for tenant in self._redis.smembers(tenants_key(self.share)):
            self._run("publish", str(tenant), [])

    def _run(self, operation: str, tenant: str, more_keys: list[str], *args: str) -> object:
        names = [slots_key(self.share, tenant, what) for what in ("slots", "waiting", "messages")]
        names += [tenants_key(self.share), *more_keys]
        are_runs, has_queues = int(self.share is Share.RUNS), int(self._has_queues)
        return self._scripts.run("slots", names, operation, tenant, self.most, are_runs, *args, has_queues)
