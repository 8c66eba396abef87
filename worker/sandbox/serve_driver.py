"""Operations that need a Ray driver, each in a process of its own.

`start PORT`: start Serve, with its HTTP proxy on this port. (Whoever starts Serve decides on the port.)
`shutdown PORT`: end Serve and its applications.
`delete NAME`: delete one application, for which Ray's dashboard has no endpoint.
"""

import os
import sys
import tempfile

import ray
from ray import serve

from worker.sandbox.processes import is_listening, wait_for


def main(operation: str, argument: str) -> None:
    """Run one operation on the Ray cluster that the environment names."""
    host, _, port = os.environ["RAY_ADDRESS"].removeprefix("ray://").rpartition(":")
    wait_for(lambda: is_listening(int(port), host), 60, "Ray's control store did not listen")
    with tempfile.TemporaryDirectory(prefix="synapse-empty-") as empty:
        # An empty folder, because the working directory of the driver that starts Serve precedes the code of
        # every release on the replicas' import path.
        ray.init(log_to_driver=False, runtime_env={"working_dir": empty})
    if operation == "start":
        serve.start(http_options={"host": "127.0.0.1", "port": int(argument)})
    elif operation == "shutdown":
        serve.shutdown()
    elif operation == "delete":
        serve.delete(argument)
    else:
        raise SystemExit(f"unknown operation: {operation}")


if __name__ == "__main__":
    main(*sys.argv[1:])
