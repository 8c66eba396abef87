"""The child process that runs the code of one release, one call at a time, until the worker ends.

`python -m worker.plugins.child_process.child FD PARENT FOLDER`: the pipe's file descriptor, the worker's
process id, the release's folder.
"""

import json
import os
import queue
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from worker.host import hold_folder
from worker.plugins.requests import ActionRequest
from worker.plugins.runner import call_operation

PARENT_POLL_SECONDS: Final = 1.0


def _read_calls(
    connection: "Connection[bytes, bytes]", parent: int, calls: "queue.SimpleQueue[bytes]"
) -> None:
    """End this process and what it has started with the worker, also amid a call.

    A fork may hold a copy of the pipe's end.
    """
    with suppress(EOFError, OSError):
        while os.getppid() == parent:
            if connection.poll(PARENT_POLL_SECONDS):
                calls.put(connection.recv_bytes())
    # It leads the group of its session.
    os.killpg(0, signal.SIGKILL)


def main(descriptor: int, parent: int, folder: Path) -> None:
    """Answer the worker's calls until it ends."""
    # A process manager may signal all processes of a worker, which needs this one for its last tasks.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)
    hold_folder(folder)
    connection: Connection[bytes, bytes] = Connection(descriptor)
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_calls, args=(connection, parent, calls), daemon=True).start()
    connection.send_bytes(b"ready")
    while True:
        request, operation, payload = json.loads(calls.get())
        reply = call_operation(folder, ActionRequest.from_json(request), operation, payload)
        connection.send_bytes(reply.encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
