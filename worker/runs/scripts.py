"""The Lua scripts about runs, of this and of other packages.

Each may use what `prelude.lua` defines: `run_exists`, `run_open`, `run_ended` and `run_reported` of a run's
key, `now` and `now_seconds` of Redis's clock, and `claim_generation` and `advance_generation` of a poll.
"""

from functools import cache

from redis import Redis

from worker.lua import Scripts, source_of
from worker.runs.keys import BEGUN_PREFIX, STEP_TIME_PREFIX, RunField


@cache
def prelude() -> str:
    """What stands before each script: the fields of a run's hash, and the functions of `prelude.lua`.

    Redis keeps scripts compiled, so a call only costs the few definitions.
    """
    names = {field.name.lower(): field.value for field in RunField}
    names |= {"begun_prefix": BEGUN_PREFIX, "step_time_prefix": STEP_TIME_PREFIX}
    table = ", ".join(f"{name} = '{value}'" for name, value in names.items())
    return f"local RUN = {{{table}}}\n{source_of('worker.runs', 'prelude')}"


def run_scripts(redis: "Redis", package: str = "worker.runs") -> Scripts:
    """The scripts of `package`.

    A script that depends on a run gets the run's key and asks `run_open(key)` and the like: what lies in the
    hash is known to `RunStore` and the scripts of `worker.runs` alone.
    """
    return Scripts(redis, package, prelude())
