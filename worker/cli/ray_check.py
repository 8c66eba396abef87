"""Connects to the Ray cluster of RAY_ADDRESS and says what is wrong, in a process that can be ended.

Ray's client cannot be interrupted: with a token that the cluster refuses it tries for tens of seconds, and
keeps its process from ending meanwhile.
"""

import os
import subprocess
import sys
from typing import Final

from worker.plugins import PluginHostUnavailableError

CONNECT_SECONDS: Final = 10.0
"""A cluster that takes the token answers within one or two."""
DEADLINE_SECONDS: Final = 25.0
"""With the loading of Ray."""


def check(address: str) -> None:
    """Raises `PluginHostUnavailableError` when the cluster cannot be used."""
    # -P: a file of the folder in which somebody asks must not take the place of a library.
    command = [sys.executable, "-P", "-m", __name__, address]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        why = f"the Ray cluster at RAY_ADDRESS gave no answer within {DEADLINE_SECONDS:.0f} s"
        raise PluginHostUnavailableError(why) from None
    if done.returncode:
        raise PluginHostUnavailableError(done.stdout.strip() or f"the check ended with {done.returncode}")


def main(address: str) -> int:
    """What the process does."""
    from worker.plugins.ray_session import session

    try:
        session.connect(address, CONNECT_SECONDS)
    except PluginHostUnavailableError as error:
        print(error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    # Ray's threads would go on.
    os._exit(main(sys.argv[1]))
