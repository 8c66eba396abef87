"""Checks the connection to the Ray cluster of RAY_ADDRESS, in a process of its own.

Ray's client cannot be interrupted: with a token that the cluster rejects, it retries for tens of seconds and
its process cannot end. A separate process can be killed.
"""

import os
import subprocess
import sys
from typing import Final

from worker.plugins import PluginHostUnavailableError

CONNECT_TIMEOUT_SECONDS: Final = 10.0
"""A cluster that accepts the token answers within one or two seconds."""
CHECK_TIMEOUT_SECONDS: Final = 25.0
"""The time for the whole check, including the import of Ray."""


def check_cluster(address: str) -> None:
    """Raise `PluginHostUnavailableError` when the cluster at `address` cannot be used."""
    # -P: a file in the current directory must not shadow a library.
    command = [sys.executable, "-P", "-m", __name__, address]
    try:
        completed = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=CHECK_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = f"the Ray cluster at RAY_ADDRESS gave no answer within {CHECK_TIMEOUT_SECONDS:.0f} s"
        raise PluginHostUnavailableError(reason) from None
    if completed.returncode:
        raise PluginHostUnavailableError(
            completed.stdout.strip() or f"the check ended with {completed.returncode}"
        )


def main(address: str) -> int:
    """Connect to the cluster, in the process of the check; the error is printed for the parent process."""
    from worker.plugins.ray_session import session

    try:
        session.connect(address, CONNECT_TIMEOUT_SECONDS)
    except PluginHostUnavailableError as error:
        print(error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    # Not sys.exit, which would wait for Ray's threads.
    os._exit(main(sys.argv[1]))
