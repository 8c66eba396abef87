"""Starts workers quickly: they are forked from a process that has everything loaded.

`python -m tests.chaos.forkserver SOCKET MODULE...`: each connection sends one JSON object `{"app", "env",
"log", "argv"}` and is answered with the process id of the new worker. The workers end with the fork server,
which its supervisor ends with the test.
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
# All that a worker loads, except what reads the environment: that is each worker's own.
LOADED = (
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "tests.chaos.fake_serve",
    "worker.broker.consumer",
    "worker.workflow.control",
    "worker.maintenance",
    "worker.to_task.tasks",
)
QUEUES = "deploy,to_task,annotate,logs,control"


class Worker:
    """A worker by its process, which is never taken for another one of the same id."""

    def __init__(self, name: str, pid: int, log: Path) -> None:
        """`name` is the whole one, `w1@chaos`."""
        self.name, self.pid, self.log = name, pid, log
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process: psutil.Process | None = psutil.Process(pid)
            return
        self._process = None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.is_running()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; one that has ended hears nothing."""
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        wait_for(lambda: not self.alive, 10, f"end of {self.name}")

    @property
    def is_ready(self) -> bool:
        """Whether it consumes."""
        return f"{self.name} ready" in self.tail(1_000_000)

    def tail(self, lines: int) -> str:
        """The last lines of its log."""
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(said.splitlines()[-lines:])


class ForkServer:
    """The mother process, as tests see it."""

    def __init__(self, folder: Path, *, app: str = "worker.app", loaded: Sequence[str] = LOADED) -> None:
        self._folder, self._app = folder, app
        self._socket = folder / "fork_server"
        command = [sys.executable, "-m", "tests.chaos.forkserver", str(self._socket), *loaded]
        self._process = start_process(
            "fork_server",
            command,
            log=folder / "fork_server.log",
            env=clean_environment(),
            cwd=ROOT,
            grace_seconds=0,
        )
        self._process.wait_until(self._socket.exists, 120)
        self._born = 0
        self.workers: list[Worker] = []

    def start(
        self,
        env: Mapping[str, str],
        *,
        concurrency: int = 8,
        queues: str = QUEUES,
        name: str = "",
        folder: Path | None = None,
    ) -> Worker:
        """A new worker; it takes messages within a second. Its log is in `folder`."""
        self._born += 1
        name = name or f"w{self._born}@chaos"
        log = (folder or self._folder) / f"{name.partition('@')[0]}.log"
        argv = ["worker", "-Q", queues, "--pool", "threads", "-c", str(concurrency), "-l", "INFO"]
        argv += ["--without-mingle", "--without-gossip", "-n", name]
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(10)
            line.connect(str(self._socket))
            asked = {"app": self._app, "env": dict(env), "log": str(log), "argv": argv}
            line.sendall(json.dumps(asked).encode() + b"\n")
            worker = Worker(name, int(line.makefile().readline()), log)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        """End all workers and the mother."""
        self._process.stop()


def _be_a_worker(asked: dict[str, Any]) -> None:
    os.environ.update(asked["env"])
    output = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if os.environ.get("CHAOS_SERVE"):
        _prepare_for_chaos()
    importlib.import_module(asked["app"]).app.worker_main(asked["argv"])


def _prepare_for_chaos() -> None:
    from tests.chaos.crash_injection import inject_crashes
    from tests.chaos.effect_log import EffectLog, keep
    from tests.chaos.fake_serve import FakeServe, install

    keep(EffectLog(Path(os.environ["CHAOS_DIARY"])))
    # Outside of that: which process dies after the work has noted it.
    deaths = inject_crashes(Path(os.environ["CHAOS_DEATHS"])) if os.environ.get("CHAOS_DEATHS") else None
    install(FakeServe(Path(os.environ["CHAOS_SERVE"]), deaths))


def main(path: str, *modules: str) -> None:
    """Wait for orders."""
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    with socket.socket(socket.AF_UNIX) as listener:
        draft = f"{path}.draft"
        listener.bind(draft)
        listener.listen(50)
        Path(draft).rename(path)
        while True:
            line, _ = listener.accept()
            asked = json.loads(line.makefile().readline())
            child = os.fork()
            if child == 0:
                listener.close()
                line.close()
                code = 1
                try:
                    _be_a_worker(asked)
                    code = 0
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else 1
                finally:
                    os._exit(code) if code else sys.exit(0)
            line.sendall(f"{child}\n".encode())
            line.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
