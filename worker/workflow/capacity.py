"""Deployments that wait for capacity of an agent's cluster: first come, first served."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import structlog
from redis import Redis

from shared.channels import RETENTION_SECONDS, job_key, redis_prefix
from worker.platform import AgentClient, ClientError, error_type
from worker.runs.heartbeat import RUN_PREFIX
from worker.runs.keys import heartbeats_key, run_key
from worker.runs.scripts import run_scripts
from worker.workflow.texts import Text, in_language

log = structlog.get_logger(__name__)

POLL_SECONDS = 5.0
MAX_POLL_SECONDS = 60.0

MAX_POSITION = 100
"""Those further behind are at this position, too, so that a look costs the same however many wait."""

ADMISSION_SECONDS = 10
"""Within this time after it was admitted a deployment has started its replicas. Until then the cluster still
shows their capacity as free, and the next one that waits is not admitted."""


@dataclass(frozen=True)
class Place:
    """Where a run stands among those that wait."""

    came_at: float
    """By Redis's clock."""
    position: int
    """From 1 to `MAX_POSITION`; 0 for a run that has ended."""
    is_next: bool
    """Whether the agent may be asked for this run."""

    @property
    def countdown(self) -> float:
        """Seconds until its next look. Those before it are asked first, so the last ones look less often."""
        return min(POLL_SECONDS * max(self.position, 1), MAX_POLL_SECONDS)


class CapacityWaitlist:
    """The runs that wait for capacity of one agent's cluster, by the times at which they came.

    A look costs the same however many wait: only the first one is looked at.
    """

    def __init__(self, redis: "Redis", tenant: str | None, agent: int) -> None:
        """Tenants may have agents of the same number."""
        self._agent = agent
        self._redis = redis
        self._scripts = run_scripts(redis, "worker.workflow")
        key = f"{redis_prefix()}:capacity:{{{quote(tenant or '', safe='')}:{agent}}}"
        self._keys = [f"{key}:waiters", f"{key}:admitted"]

    def look(self, job: str, came_at: float | None) -> Place:
        """The place of a run that waits. `came_at`: as an earlier look has said; None for the first one.

        A run keeps its place also where it was taken for lost and others have passed it meanwhile.
        """
        came, position, is_paused = self._scripts.run(
            "join_capacity",
            [*self._keys, run_key(job), job_key(job), heartbeats_key()],
            job,
            "" if came_at is None else repr(came_at),
            RUN_PREFIX,
            f"capacity of agent {self._agent}",
            RETENTION_SECONDS,
            MAX_POSITION - 1,
        )
        return Place(float(came), int(position), int(position) == 1 and not is_paused)

    def position(self, job: str) -> int | None:
        """From 1 to `MAX_POSITION`; None for a run that does not wait."""
        waiters = self._keys[0]
        came = self._redis.zscore(waiters, job)
        if came is None:
            return None
        before = self._redis.zrangebyscore(waiters, "-inf", f"({came!r}", start=0, num=MAX_POSITION - 1)
        return len(before) + 1

    def leave(self, job: str) -> None:
        """The run is admitted. A run that ends leaves by itself."""
        self._scripts.run("leave_capacity", self._keys, job, ADMISSION_SECONDS)


def wanted_and_free(
    language: str, agent_client: AgentClient, resources: Mapping[str, Any], replicas: int
) -> str:
    """What a denied deployment wants and what the cluster has free, for its user.

    `resources`: `num_cpus` (1 by default), `num_gpus` and `memory` (bytes) of one replica.
    """
    cpus = resources.get("num_cpus")
    amounts = {
        "cpu": 1.0 if cpus is None else cpus,
        "gpu": resources.get("num_gpus"),
        "memory": resources.get("memory"),
    }
    needed = {name: float(amount) for name, amount in amounts.items() if amount}
    each = ", ".join(_UNITS[name].format(_amount(name, amount)) for name, amount in needed.items())
    wanted = f"{replicas} × ({each or '0 CPU'})"
    try:
        found = agent_client.get_cluster_resources()
    except (ClientError, OSError) as error:
        log.warning("cluster not looked at after a denial", error_type=error_type(error))
        found = {}
    free = [part for name in needed if (part := _free(name, found.get(name)))]
    if not free:
        return in_language(language, Text.WANTED, wanted=wanted)
    return in_language(language, Text.WANTED_AND_FREE, wanted=wanted, free=", ".join(free))


_UNITS: Final = {"cpu": "{} CPU", "gpu": "{} GPU", "memory": "{} GB"}


def _amount(name: str, amount: float) -> str:
    return f"{amount / 1024**3:.3g}" if name == "memory" else f"{amount:g}"


def _free(name: str, resource: object) -> str:
    """`1 / 4 CPU`: what is free of how much; empty where the agent does not say it."""
    if not isinstance(resource, Mapping):
        return ""
    # Agents name them `available` or `available_gpus`.
    found = {str(key).partition("_")[0]: as_number(value) for key, value in resource.items()}
    free, total = found.get("available"), found.get("total")
    if free is None or total is None:
        return ""
    return _UNITS[name].format(f"{_amount(name, free)} / {_amount(name, total)}")


def as_number(value: object) -> float | None:
    """A number that an agent has sent; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # No NaN either, and no whole number that no float holds.
    return float(value) if 0 <= value <= sys.float_info.max else None
