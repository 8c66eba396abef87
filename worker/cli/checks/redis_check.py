"""What `doctor` says of a Redis: each finding is a line that says what to do."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from redis import Redis, ResponseError
from redis.exceptions import NoPermissionError

from worker.cli.checks.report import Finding
from worker.redis_needs import CLUSTER_ERROR, MIN_VERSION, missing_rights

MIN_FREE_CLIENTS: Final = 100
"""A worker process holds about twenty connections."""

FULL_SHARE: Final = 0.9


def version_of(redis: Redis) -> str:
    """Redis's version; raises `RedisError` when it does not answer."""
    try:
        return str(redis.info("server")["redis_version"])
    except NoPermissionError:
        return "unknown"


def check_redis(
    redis: Redis, queues: Sequence[str], *, database: int = 0, keyprefix: str = ""
) -> list[Finding]:
    """All findings; `queues` are those on this Redis."""
    try:
        info: dict[str, Any] = redis.info("everything")
    except ResponseError:
        info = {}
    if info.get("cluster_enabled") == 1:
        return [Finding(CLUSTER_ERROR)]
    rights = [Finding(text) for text in missing_rights(redis, queues, database=database, keyprefix=keyprefix)]
    if not info:
        return [*rights, Finding("the user may not call INFO, nothing else was checked: add +info", False)]
    return [*_server(info), *_persistence(info), *_memory(info), *_clients(info), *rights]


def _server(info: dict[str, Any]) -> Iterator[Finding]:
    version = str(info["redis_version"])
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if parts < MIN_VERSION:
        yield Finding(f"version {version} is too old: install 6.2 or newer")
    if info.get("role") == "slave":
        yield Finding("is a read-only replica: name the master, or its Sentinels with sentinel://…")


def _persistence(info: dict[str, Any]) -> Iterator[Finding]:
    if info.get("aof_enabled") == 0:
        yield Finding(
            "has no append-only file, so that a crash loses messages and runs: set appendonly yes", False
        )
    failed = [
        name
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if info.get(name, "ok") != "ok"
    ]
    if failed:
        yield Finding(
            f"could not write to its disk ({', '.join(failed)}): look at its free space and its log"
        )


def _memory(info: dict[str, Any]) -> Iterator[Finding]:
    policy = str(info.get("maxmemory_policy", "noeviction"))
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if policy.startswith("allkeys-"):
        yield Finding(f"maxmemory-policy {policy} deletes queues and runs: set maxmemory-policy noeviction")
    elif policy != "noeviction":
        yield Finding(
            f"maxmemory-policy {policy} deletes locks of running steps: set maxmemory-policy noeviction",
            False,
        )
    if limit and used > FULL_SHARE * limit:
        share = f"{used / limit:.0%} of maxmemory is used"
        yield Finding(f"{share}: raise maxmemory; a full Redis accepts no work until memory is free", False)


def _clients(info: dict[str, Any]) -> Iterator[Finding]:
    limit, connected = int(info.get("maxclients", 0)), int(info.get("connected_clients", 0))
    if limit and limit - connected < MIN_FREE_CLIENTS:
        yield Finding(
            f"{connected} of {limit} clients are connected: raise maxclients; a worker process needs 20",
            False,
        )
