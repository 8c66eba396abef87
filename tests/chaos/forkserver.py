"""Starts workers quickly, by forking them from a process that has imported what they need.

`python -m tests.chaos.forkserver SOCKET MODULE...` listens on a Unix socket. A client sends one JSON object
`{"app", "env", "log", "argv"}` and receives the process id of the new worker. The workers end with the fork
server, which its supervisor ends with the test.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from worker.sandbox.processes import clean_environment, start_process, wait_for

ROOT = Path(__file__).parents[2]
# All that a worker imports, except modules that read the environment: each worker has its own.
PRELOADED = (
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "tests.chaos.fake_serve",
    "worker.broker.consumer",
    "worker.workflow.control",
    "worker.maintenance",
    "worker.to_task.tasks",
)
MAX_START_SECONDS = 180
"""Imports take seconds, and minutes on a machine that other processes use."""
QUEUES = "deploy,to_task,annotate,logs,control"


class Worker:
    """A worker's process. psutil compares start times, so that a reused process id is no mistake."""

    def __init__(self, name: str, pid: int, log: Path) -> None:
        """`name` is Celery's node name, such as `w1@chaos`."""
        self.name, self.pid, self.log = name, pid, log
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process: psutil.Process | None = psutil.Process(pid)
            return
        self._process = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_running()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.signal(signal.SIGKILL)
        wait_for(lambda: not self.alive, 10, f"end of {self.name}")

    @property
    def is_ready(self) -> bool:
        """Whether it consumes its queues."""
        return f"{self.name} ready" in self.tail(1_000_000)

    def tail(self, lines: int) -> str:
        """The last lines of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class ForkServer:
    """The client of the fork server, which it starts."""

    def __init__(
        self, folder: Path, *, app: str = "worker.app", preloaded: Sequence[str] = PRELOADED
    ) -> None:
        self._folder, self._app = folder, app
        self._socket = folder / "fork_server"
        command = [sys.executable, "-m", "tests.chaos.forkserver", str(self._socket), *preloaded]
        self._process = start_process(
            "fork_server",
            command,
            log=folder / "fork_server.log",
            env=clean_environment(),
            cwd=ROOT,
            grace_seconds=0,
        )
        self._process.wait_until(self._socket.exists, MAX_START_SECONDS)
        self._started = 0

    def start(
        self,
        env: Mapping[str, str],
        *,
        concurrency: int = 8,
        queues: str = QUEUES,
        pool: str = "threads",
        name: str = "",
        folder: Path | None = None,
    ) -> Worker:
        """Start a worker, which consumes within a second. Its log is in `folder`."""
        self._started += 1
        name = name or f"w{self._started}@chaos"
        log = (folder or self._folder) / f"{name.partition('@')[0]}.log"
        argv = ["worker", "-Q", queues, "--pool", pool, "-c", str(concurrency), "-l", "INFO"]
        argv += ["-n", name]
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self._socket))
            request = {"app": self._app, "env": dict(env), "log": str(log), "argv": argv}
            connection.sendall(json.dumps(request).encode() + b"\n")
            return Worker(name, int(connection.makefile().readline()), log)

    def close(self) -> None:
        """End the fork server and all workers."""
        self._process.stop()


def _run_worker(request: dict[str, Any]) -> None:
    os.environ.update(request["env"])
    output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if os.environ.get("CHAOS_SERVE"):
        _prepare_for_chaos()
    importlib.import_module(request["app"]).app.worker_main(request["argv"])


def _prepare_for_chaos() -> None:
    from tests.chaos.crash_injection import inject_crashes
    from tests.chaos.effect_log import EffectLog, log_effects
    from tests.chaos.fake_serve import FakeServe, install_fake_serve

    log_effects(EffectLog(Path(os.environ["CHAOS_EFFECT_LOG"])))
    # Crashes are added last, around the log: a worker that crashes after a call has logged its effect.
    crashes = inject_crashes(Path(os.environ["CHAOS_CRASHES"])) if os.environ.get("CHAOS_CRASHES") else None
    install_fake_serve(FakeServe(Path(os.environ["CHAOS_SERVE"]), crashes), crashes)


def main(path: str, *modules: str) -> None:
    """Import `modules`, listen on `path`, and fork a worker for each request."""
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps ended workers
    with socket.socket(socket.AF_UNIX) as listener:
        # Renamed once it listens, so that clients which find the path can connect.
        temporary = f"{path}.temporary"
        listener.bind(temporary)
        listener.listen(50)
        Path(temporary).rename(path)
        while True:
            connection, _ = listener.accept()
            request = json.loads(connection.makefile().readline())
            pid = os.fork()
            if pid == 0:
                listener.close()
                connection.close()
                code = 1
                try:
                    _run_worker(request)
                    code = 0
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else 1
                finally:
                    os._exit(code) if code else sys.exit(0)
            connection.sendall(f"{pid}\n".encode())
            connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
