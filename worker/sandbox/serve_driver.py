"""Short errands that only a driver of Ray can run, each in a process of its own.

`start PORT`: bring Serve up; the first to start it decides where its HTTP listens, for as long as it lives.
`delete NAME`: remove one application, for which Ray's dashboard has no call.
"""

import os
import sys
import tempfile

import ray
from ray import serve

from worker.sandbox.processes import listens, wait_for


def main(errand: str, argument: str) -> None:
    """Run one errand against the Ray of the environment."""
    host, _, port = os.environ["RAY_ADDRESS"].rpartition(":")
    wait_for(lambda: listens(int(port), host), 60, "Ray's control store did not listen")
    with tempfile.TemporaryDirectory(prefix="synapse-empty-") as empty:
        # Who first starts Serve puts its own folder before every release's code in the replicas.
        ray.init(log_to_driver=False, runtime_env={"working_dir": empty})
    if errand == "start":
        serve.start(http_options={"host": "127.0.0.1", "port": int(argument)})
    elif errand == "delete":
        serve.delete(argument)
    else:
        raise SystemExit(f"unknown errand: {errand}")


if __name__ == "__main__":
    main(*sys.argv[1:])
