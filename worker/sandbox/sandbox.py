"""A whole platform on one machine, for the duration of a `with` block."""

import re
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import httpx

from worker.sandbox.backend.state import State
from worker.sandbox.local_ray import NODE_ADDRESS, LocalRay, check_paths
from worker.sandbox.processes import (
    MAX_START_SECONDS,
    Process,
    clean_environment,
    free_port,
    make_temp_dir,
    start_process,
)
from worker.sandbox.seed import seed_agent
from worker.sandbox.servers import HttpService, RedisServer

AGENT_ID: Final = 1
ALL_QUEUES: Final = "deploy,to_task,annotate,logs,control"
WORKER_READY: Final = re.compile(r"@\S+ ready")


def _ignore(_: str) -> None:
    """Show no progress."""


class Sandbox:
    """Redis, Ray, backend and agent.

    `directory` is kept; without it a temporary one is created and removed. Without Ray there is no agent
    either, and the agent's record in the backend has no URL. `broker_url` is that of a message queue which
    is not the sandbox's Redis.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        plugins_dir: Path,
        num_cpus: int = 4,
        with_ray: bool = True,
        ray_node_address: str = NODE_ADDRESS,
        broker_url: str | None = None,
        on_progress: Callable[[str], None] = _ignore,
    ) -> None:
        if with_ray:
            check_paths()
        self._is_temporary = directory is None
        self.directory = directory or make_temp_dir("synapse-sandbox-")
        self.plugins_dir = plugins_dir
        self.files_dir = self.directory / "files"
        self._logs = self.directory / "logs"
        for folder in (self.directory, self.files_dir, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
        self._on_progress = on_progress
        self._broker_url = broker_url
        self._workers: list[Process] = []
        self.consoles: list[Process] = []
        self.access_token = secrets.token_hex(24)
        self.plugin_token = secrets.token_hex(24)
        self.agent_token = secrets.token_hex(24)
        self.redis = RedisServer(self.directory / "redis")
        self.backend = HttpService("backend", "worker.sandbox.backend", log=self._logs / "backend.log")
        self.ray: LocalRay | None = None
        self.agent: HttpService | None = None
        if with_ray:
            self.ray = LocalRay(self.directory / "ray", num_cpus=num_cpus, node_address=ray_node_address)
            self.agent = HttpService("agent", "worker.sandbox.agent", log=self._logs / "agent.log")
        self.state = State(self.directory / "backend.sqlite3")
        self._configure()

    @property
    def redis_url(self) -> str:
        """`REDIS_URL`: the broker and the store of the runs."""
        return self.redis.url

    @property
    def broker_url(self) -> str:
        """`CELERY_BROKER_URL`"""
        return self._broker_url or self.redis_url

    @property
    def backend_url(self) -> str:
        """`SYNAPSE_HOST`"""
        return self.backend.url

    @property
    def agent_url(self) -> str | None:
        """`SYNAPSE_AGENT_URL`; None without Ray."""
        return None if self.agent is None else self.agent.url

    @property
    def workers(self) -> list[Process]:
        """The workers started with `start_worker`."""
        return list(self._workers)

    @property
    def files_url(self) -> str:
        """The URL of `files_dir`, which needs no token, like signed URLs of a storage service."""
        return f"{self.backend.url}/files"

    def environment(self) -> dict[str, str]:
        """All settings that a worker needs. This process's environment is not changed."""
        environ = {
            "SYNAPSE_HOST": self.backend_url,
            "SYNAPSE_ACCESS_TOKEN": self.access_token,
            "WORKER_PLUGIN_ACCESS_TOKEN": self.plugin_token,
            "REDIS_URL": self.redis_url,
            "PLUGINS_DIR": str(self.plugins_dir),
        }
        if self._broker_url is not None:
            environ["CELERY_BROKER_URL"] = self._broker_url
        if self.agent is not None and self.ray is not None:
            environ |= {"SYNAPSE_AGENT_URL": self.agent.url, "SYNAPSE_AGENT_TOKEN": self.agent_token}
            environ |= self.ray.environment()
        return environ

    def start(self) -> Self:
        """Start everything. Ray takes longest, so the other services start meanwhile."""
        try:
            if self.ray is not None:
                self._on_progress("starting Ray")
                self.ray.launch()
            self.redis.start()
            self._on_progress(f"Redis on port {self.redis.port}")
            self.backend.start()
            self._on_progress(f"backend on {self.backend.url}")
            if self.ray is not None and self.agent is not None:
                self.agent.launch()
                self._on_progress("waiting for Ray and Ray Serve: 15 seconds, or minutes on a busy machine")
                self.ray.await_ready()
                self._on_progress(f"Ray on {self.ray.address}, dashboard on {self.ray.dashboard_url}")
                self.agent.await_ready()
                self._on_progress(f"agent on {self.agent.url}")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything, workers first, and remove a temporary directory."""
        for process in (*self.consoles, *self._workers):
            process.stop()
        for service in (self.backend, self.agent, self.ray, self.redis):
            if service is not None:
                service.stop()
        self.state.close()
        if self._is_temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_worker(
        self,
        *,
        queues: str = ALL_QUEUES,
        concurrency: int = 8,
        env: Mapping[str, str] | None = None,
        seconds: float = MAX_START_SECONDS,
        prefix: Sequence[str] = (),
    ) -> Process:
        """Start a worker on this sandbox and wait until it consumes; it ends with the sandbox.

        `prefix` is a command that runs the worker's, such as `nice`.
        """
        number = len(self._workers) + 1
        self._on_progress(f"starting worker {number}")
        command = [*prefix, sys.executable, "-m", "celery", "-A", "worker", "worker"]
        command += ["-Q", queues, "--pool", "threads", "-c", str(concurrency), "-l", "INFO"]
        command += ["-n", f"worker{number}@%h"]
        log = self._logs / f"worker{number}.log"
        environ = {**clean_environment(), **self.environment(), **(env or {})}
        worker = start_process(f"worker{number}", command, log=log, env=environ, grace_seconds=15)
        self._workers.append(worker)
        worker.wait_until(lambda: WORKER_READY.search(log.read_text(errors="replace")) is not None, seconds)
        self._on_progress(f"worker {number} is ready, on {queues}")
        return worker

    def start_console(self, *, samples: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """Start the live page and wait until it shows the runs; returns its URL. It ends with the sandbox.

        `samples`: a folder of images, which it shows with the labels of the file `samples.json` in it.
        """
        port = free_port()
        command = [
            sys.executable,
            "-c",
            "from worker.cli import main; main()",
            "console",
            "--port",
            str(port),
        ]
        command += ["--samples", str(samples)] if samples else []
        log = self._logs / "console.log"
        environ = {**clean_environment(), **self.environment(), **(env or {})}
        console = start_process("console", command, log=log, env=environ, grace_seconds=10)
        self.consoles.append(console)
        url = f"http://127.0.0.1:{port}"

        def is_ready() -> bool:
            try:
                return httpx.get(f"{url}/ready", timeout=2, trust_env=False).is_success
            except httpx.TransportError:
                return False

        console.wait_until(is_ready, MAX_START_SECONDS)
        return url

    def _configure(self) -> None:
        seed_agent(self.state, url=self.agent_url, token=self.agent_token, id=AGENT_ID)
        backend = {
            "SANDBOX_ACCESS_TOKEN": self.access_token,
            "SANDBOX_PLUGIN_TOKEN": self.plugin_token,
            "SANDBOX_FILES_DIR": str(self.files_dir),
            "SANDBOX_STATE": str(self.directory / "backend.sqlite3"),
            "PLUGINS_DIR": str(self.plugins_dir),
            "REDIS_URL": self.redis_url,
        }
        if self._broker_url is not None:
            backend["CELERY_BROKER_URL"] = self._broker_url
        if self.ray is not None and self.agent is not None:
            backend["SANDBOX_SERVE_URL"] = self.ray.serve_url
            self.agent.configure(
                {
                    "SANDBOX_AGENT_TOKEN": self.agent_token,
                    "SANDBOX_PLUGIN_TOKEN": self.plugin_token,
                    "SANDBOX_DASHBOARD_URL": self.ray.dashboard_url,
                    **self.ray.environment(),
                }
            )
        self.backend.configure(backend)
