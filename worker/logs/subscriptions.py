"""Which logs are relayed, and by which relay: kept in Redis, so that no log is lost when a relay dies."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis as AsyncRedis

from shared.channels import redis_prefix
from worker.lua import Scripts
from worker.platform.streams import StreamProtocol
from worker.runs.events import LOG_SCRIPT, line_time, log_args, log_keys
from worker.runs.keys import ended_logs_key, log_subscription, open_logs_key, relay_token_key
from worker.runs.scripts import run_scripts

log = structlog.get_logger(__name__)


def log_owners_key() -> str:
    """Hash: the fencing token of the current claim, by subscription."""
    return f"{redis_prefix()}:{{logs}}:owners"


def last_log_claim_key() -> str:
    """Counter from which the fencing tokens are taken."""
    return f"{redis_prefix()}:{{logs}}:last_claim"


@dataclass(frozen=True, slots=True)
class Subscription:
    """The log of one Ray job, to be relayed to the log channel of one job."""

    job: str
    ray_job: str

    @classmethod
    def parse(cls, name: str) -> "Subscription":
        """The subscription with this `name`; raises `ValueError` for what no release writes."""
        name.encode()  # raises where it is no UTF-8
        job, separator, ray_job = name.partition("/")
        if not separator:
            raise ValueError("no subscription")
        return cls(job, ray_job)

    @property
    def name(self) -> str:
        """The member of the sorted set."""
        return log_subscription(self.job, self.ray_job)


@dataclass(frozen=True, slots=True)
class Claim:
    """A relay's right to write one log, until a claim with a higher fencing token is made."""

    subscription: Subscription
    fencing_token: str


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a tail starts: after `position` lines of the log, read from `agent` by `protocol`."""

    position: int
    agent: int | None
    protocol: StreamProtocol


class ClaimStore:
    """The claims of one relay on subscriptions."""

    def __init__(self, redis: "AsyncRedis", ttl_seconds: float) -> None:
        """A claim that is not renewed within `ttl_seconds` expires, and another relay may acquire its log."""
        self._redis = redis
        self._ttl_seconds = ttl_seconds
        self._claim_scripts = Scripts(redis, "worker.logs")
        self._log_scripts = run_scripts(redis)

    async def acquire(self, limit: int) -> list[Claim]:
        """Claim at most `limit` subscriptions that no relay holds; what is damaged is removed."""
        keys = [open_logs_key(), log_owners_key(), last_log_claim_key()]
        acquired = await self._claim_scripts.run("acquire_claims", keys, self._ttl_seconds, limit)
        claims = []
        for name, fencing_token in acquired:
            try:
                claims.append(Claim(Subscription.parse(name), fencing_token))
            except ValueError:
                log.error("damaged log subscription removed")
                await self._claim_scripts.run("release_claim", keys[:2], name, fencing_token, "1")
        return claims

    async def wait_for_subscriptions(self, seconds: float) -> None:
        """Return when there may be something to claim, or after `seconds`.

        Claims that expire leave no token, nor does a worker that dies while it subscribes.
        """
        await self._redis.blpop([relay_token_key()], timeout=seconds)

    async def wake_relay(self) -> None:
        """Let one of the relays that wait look for something to claim."""
        await self._log_scripts.run("wake_relay", [relay_token_key()])

    async def renew(self, claims: Mapping[str, Claim]) -> list[str]:
        """Renew claims, given by subscription name; returns the names that other relays hold now."""
        if not claims:
            return []
        pairs = [part for name, claim in claims.items() for part in (name, claim.fencing_token)]
        keys = [open_logs_key(), log_owners_key()]
        return list(await self._claim_scripts.run("renew_claims", keys, self._ttl_seconds, *pairs))

    async def release(self, claim: Claim, *, log_closed: bool) -> None:
        """Give up a claim: remove the subscription of a closed log, else let any relay claim it at once."""
        arguments = (claim.subscription.name, claim.fencing_token, "1" if log_closed else "")
        await self._claim_scripts.run("release_claim", [open_logs_key(), log_owners_key()], *arguments)

    async def claim_log(self, claim: Claim) -> ResumePoint | None:
        """Fence off earlier claims from writing; None when the log is closed or a newer claim writes it."""
        found = await self._call_log_script("claim", claim)
        if not found:
            return None
        position, connection_options = int(found[0]), json.loads(found[1])
        return ResumePoint(position, connection_options["agent"], connection_options["protocol"])

    async def close_log(self, claim: Claim, reason: str, final_line: str = "") -> bool:
        """Record that the log has no more lines. False when the claim was lost."""
        if not await self._call_log_script("close", claim, reason, line_time(), final_line):
            return False
        await self._redis.zadd(ended_logs_key(), {claim.subscription.job: 0})
        return True

    async def _call_log_script(self, operation: str, claim: Claim, *operands: str) -> Any:
        job, ray_job = claim.subscription.job, claim.subscription.ray_job
        arguments = log_args(operation, job, ray_job, claim.fencing_token, *operands)
        return await self._log_scripts.run(LOG_SCRIPT, log_keys(job), *arguments)
