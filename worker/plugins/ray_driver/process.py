"""The worker's side of the driver process: starts it, calls functions in it, kills it.

Requests are pickled functions and arguments, as only the worker can send them. Replies are JSON, so that
nothing that comes from the cluster is unpickled in the worker.
"""

import itertools
import json
import logging
import multiprocessing
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from worker.platform import clean
from worker.plugins.errors import RayDriverError, RunEndedError
from worker.plugins.run_end import wait_for

logger = logging.getLogger(__name__)

CHILD_MODULE = "worker.plugins.ray_driver.child"
MAX_LOGGED_CHARS = 2_000


class RayDriver:
    """The driver process of this worker process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: _DriverProcess | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is a driver process."""
        return self.pid is not None

    @property
    def pid(self) -> int | None:
        """The driver process's id; None when there is none."""
        process = self._process
        is_own = process is not None and process.owner == os.getpid()
        return process.pid if process is not None and is_own and process.is_running else None

    def start(self) -> None:
        """Start a new process; an older one is killed."""
        self.kill()
        with self._lock:
            self._process = _DriverProcess()

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        timeout: float,
        undo: Callable[[Any], Any] | None = None,
    ) -> Any:
        """The JSON value of `function(*arguments)` in the driver process.

        `function` is importable by name. Raises `RayDriverError` when it raises, and when the process ends or
        does not answer within `timeout` seconds; then the process is killed, and with it all other calls.
        Raises `RunEndedError` when the run for which it is called ends meanwhile. The process and its other
        calls go on then, and `undo` is called in it with the value, should there be one after all.
        """
        process = self._own_process()
        reply = process.send(pickle.dumps((function, arguments)))
        try:
            if wait_for(lambda seconds: is_settled(reply, seconds), timeout):
                return reply.result()
        except RunEndedError:
            if undo is not None:
                reply.add_done_callback(lambda late: process.undo(late, undo))
            raise
        logger.warning("ray driver killed", extra={"call": function.__name__, "timeout": timeout})
        process.kill()
        raise RayDriverError("TimeoutError", f"no answer within {timeout:g} s")

    def send(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call the function in the driver process, and wait for nothing."""
        self._own_process().send(pickle.dumps((function, arguments)))

    def _own_process(self) -> "_DriverProcess":
        process = self._process
        # A forked process has its parent's object, but the pipe belongs to the parent.
        if process is None or process.owner != os.getpid():
            raise _lost()
        return process

    def kill(self) -> None:
        """Kill the driver process; all calls that wait for it fail."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None and process.owner == os.getpid():
            process.kill()


class _DriverProcess:
    """One driver process, and the calls that wait for it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                # -P: a file in the current directory must not shadow a library.
                [sys.executable, "-P", "-m", CHILD_MODULE, str(theirs.fileno()), str(self.owner)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                # Ctrl-C in a terminal is meant for the worker, which ends its driver after its last task.
                start_new_session=True,
            )
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._has_ended = False
        # Written in a thread of its own, because a process that hangs does not read.
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="ray-driver-write", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read, name="ray-driver-read", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return not self._has_ended

    def send(self, call: bytes) -> "Future[Any]":
        reply: Future[Any] = Future()
        with self._lock:
            if self._has_ended:
                raise _lost()
            number = next(self._numbers)
            self._waiting[number] = reply
        self._requests.put(pickle.dumps((number, call)))
        return reply

    def undo(self, reply: "Future[Any]", undo: Callable[[Any], Any]) -> None:
        if reply.exception() is None:
            with suppress(RayDriverError):
                self.send(pickle.dumps((undo, (reply.result(),))))

    def kill(self) -> None:
        """The calls that wait fail here, and not only when the pipe is read to its end."""
        self._process.kill()
        self._fail_calls()

    def _write(self) -> None:
        with suppress(OSError):
            while (request := self._requests.get()) is not None:
                self._connection.send_bytes(request)

    def _read(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._settle(json.loads(self._connection.recv_bytes()))
        self._fail_calls()
        self._requests.put(None)
        self._process.wait()
        # A close amid a write raises TypeError in the writer. The process has ended, so no write waits.
        self._writer.join()
        self._connection.close()

    def _settle(self, content: dict[str, Any]) -> None:
        with self._lock:
            reply = self._waiting.pop(content["number"], None)
        if reply is None:
            return
        if "error" in content:
            kind, text = content["error"]
            text = clean(text)
            logger.debug("ray call failed", extra={"error_type": kind, "error": text[:MAX_LOGGED_CHARS]})
            reply.set_exception(RayDriverError(kind, kind, text))
        else:
            reply.set_result(content["value"])

    def _fail_calls(self) -> None:
        with self._lock:
            self._has_ended = True
            waiting, self._waiting = self._waiting, {}
        for reply in waiting.values():
            reply.set_exception(_lost())


def is_settled(reply: "Future[Any]", seconds: float) -> bool:
    """Whether the reply or its error is there within `seconds`."""
    try:
        reply.exception(seconds)
    except TimeoutError:
        return False
    return True


def _lost() -> RayDriverError:
    return RayDriverError("ProcessEnded", "the process that talks to Ray has ended")
