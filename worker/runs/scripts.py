"""The Lua scripts about runs, of this and of other packages."""

from redis import Redis

from worker.lua import Scripts, source_of

PRELUDE = source_of("worker.runs", "prelude")


def run_scripts(redis: "Redis", package: str = "worker.runs") -> Scripts:
    """The scripts of `package`, which may use the functions of `prelude.lua`."""
    return Scripts(redis, package, PRELUDE)
