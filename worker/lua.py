"""What the Redis server does for all packages: it runs their Lua scripts and has the clock."""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from redis import Redis
from redis.commands.core import Script


@cache
def source_of(package: str, name: str) -> str:
    """The text of script `name` of `package`."""
    return (resources.files(package) / "lua" / f"{name}.lua").read_text(encoding="utf-8")


class Scripts:
    """The scripts in the folder `lua` of `package`, each after `prelude`. Redis keeps them compiled."""

    def __init__(self, redis: "Redis", package: str, prelude: str = "") -> None:
        self._redis = redis
        self._package = package
        self._prelude = prelude
        self._registered: dict[str, Script] = {}

    def run(self, name: str, keys: Sequence[str | bytes], *args: str | bytes | int | float) -> Any:
        """Run script `name`; what it returns depends on it, and is awaitable when `redis` is asynchronous."""
        script = self._registered.get(name)
        if script is None:
            source = self._prelude + source_of(self._package, name)
            script = self._registered[name] = self._redis.register_script(source)
        return script(keys=keys, args=list(args))


def redis_time(redis: "Redis") -> float:
    """Redis's clock in seconds since the epoch, on which all workers agree."""
    seconds, microseconds = redis.time()
    return float(seconds + microseconds / 1e6)
