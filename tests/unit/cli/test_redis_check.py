"""What `doctor` says of a Redis, given what the server says of itself."""

from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from worker.cli.checks import redis_check
from worker.cli.checks.redis_check import check_redis
from worker.cli.checks.report import Finding
from worker.redis_needs import CLUSTER_ERROR

HEALTHY = {
    "redis_version": "7.0.15",
    "cluster_enabled": 0,
    "role": "master",
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "maxmemory_policy": "noeviction",
    "maxmemory": 1000,
    "used_memory": 100,
    "maxclients": 10_000,
    "connected_clients": 20,
}


class Server:
    """Answers INFO."""

    def __init__(self, **changed: Any) -> None:
        self.said = {**HEALTHY, **changed}

    def info(self, _section: str) -> dict[str, Any]:
        return self.said


@pytest.fixture(autouse=True)
def rights(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rights that the user lacks."""
    missing: list[str] = []
    monkeypatch.setattr(redis_check, "missing_rights", lambda *_, **__: iter(missing))
    return missing


def findings(server: Any) -> list[Finding]:
    return check_redis(server, ("deploy",))


def test_healthy_redis_has_no_finding() -> None:
    assert findings(Server()) == []


@pytest.mark.parametrize(
    ("said", "is_error", "words"),
    [
        ({"redis_version": "5.0.7"}, True, "install 6.2 or newer"),
        ({"redis_version": "6.0.16"}, True, "install 6.2 or newer"),
        ({"role": "slave"}, True, "name the master"),
        ({"aof_enabled": 0}, False, "set appendonly yes"),
        ({"aof_last_write_status": "err"}, True, "look at its free space"),
        ({"rdb_last_bgsave_status": "err"}, True, "look at its free space"),
        ({"maxmemory_policy": "allkeys-lru"}, True, "set maxmemory-policy noeviction"),
        ({"maxmemory_policy": "volatile-ttl"}, False, "set maxmemory-policy noeviction"),
        ({"used_memory": 950}, False, "95% of maxmemory is used: raise maxmemory"),
        ({"maxclients": 110}, False, "raise maxclients"),
        ({"cluster_enabled": 1}, True, CLUSTER_ERROR),
    ],
)
def test_finding_says_what_to_do(said: dict[str, Any], is_error: bool, words: str) -> None:
    (finding,) = findings(Server(**said))

    assert words in finding.text
    assert finding.is_error is is_error


def test_missing_rights_are_errors(rights: list[str]) -> None:
    rights.append("the user may not call XADD: add +xadd")

    assert findings(Server()) == [Finding("the user may not call XADD: add +xadd")]


def test_user_that_may_not_ask_is_a_warning() -> None:
    class Denied:
        def info(self, _section: str) -> dict[str, Any]:
            raise NoPermissionError("no permissions to run the 'info' command")

    (finding,) = findings(Denied())
    assert "add +info" in finding.text
    assert not finding.is_error
