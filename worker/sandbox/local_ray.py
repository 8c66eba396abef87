"""A real Ray on this machine: one head node, its dashboard and Ray Serve, protected by a random token."""

import secrets
import subprocess
import sys
from pathlib import Path
from typing import Final

import httpx

from worker.sandbox.processes import (
    MAX_START_SECONDS,
    Process,
    SandboxError,
    clean_environment,
    free_port,
    make_temp_dir,
    start_process,
    temp_root,
)

# Ray replaces 127.0.0.1 by the machine's external address, and keeps other loopback addresses.
NODE_ADDRESS: Final = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
OBJECT_STORE_BYTES: Final = 200 * 1024 * 1024
MAX_TEMP_PATH_CHARS: Final = 25
"""Ray keeps Unix sockets some 80 characters below its temporary directory, and their paths may have 107."""


def check_paths() -> None:
    """Raise `SandboxError` where Ray would not start: it cuts its commands at a space."""
    for path in (sys.executable, sys.prefix, str(_short_temp_dir())):
        if " " in path:
            raise SandboxError(
                f"Ray does not start from a path with a space: {path}\nMove the project elsewhere"
            )


def _short_temp_dir() -> Path:
    temp_dir = temp_root()
    return temp_dir if len(str(temp_dir)) <= MAX_TEMP_PATH_CHARS else Path("/tmp")  # noqa: S108 - as short


class LocalRay:
    """Starts in two steps, `launch` and `await_ready`, so that other services can start meanwhile."""

    def __init__(self, directory: Path, *, num_cpus: int, node_address: str = NODE_ADDRESS) -> None:
        self._directory, self._num_cpus = directory, num_cpus
        port, client, dashboard, serve = (free_port() for _ in range(4))
        self._node_address = node_address
        self.address = f"{node_address}:{port}"
        self.client_address = f"ray://{node_address}:{client}"
        """For drivers that cannot see this machine's processes."""
        self.dashboard_url = f"http://127.0.0.1:{dashboard}"
        self.serve_url = f"http://127.0.0.1:{serve}"
        self.token = secrets.token_hex(32)
        self._ports = {"port": port, "dashboard-port": dashboard, "ray-client-server-port": client}
        self._serve_port = serve
        self.temp_dir: Path | None = None
        self._serve_starter: Process | None = None
        self.process: Process | None = None

    def environment(self) -> dict[str, str]:
        """The environment variables with which a driver connects."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def launch(self) -> None:
        """Start the processes without waiting for them."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self.temp_dir = make_temp_dir("ray-", dir=_short_temp_dir())
        environ = clean_environment() | self.environment()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        self.process = start_process(
            "ray",
            command + self._options(),
            log=self._directory / "ray.log",
            env=environ | self._tuning(),
            grace_seconds=0,
            scratch_dir=self.temp_dir,
        )
        self._serve_starter = start_process(
            "serve",
            [sys.executable, "-m", "worker.sandbox.serve_driver", "start", str(self._serve_port)],
            log=self._directory / "serve.log",
            env=environ,
            grace_seconds=0,
        )

    def await_ready(self, seconds: float = MAX_START_SECONDS) -> None:
        """Wait until the node, the dashboard and Serve answer."""
        assert self.process is not None
        assert self._serve_starter is not None
        self.process.wait_until(self._serve_is_up, seconds)
        self._serve_starter.stop()

    def restart_serve(self, seconds: float = MAX_START_SECONDS) -> None:
        """Shut Serve down with all its applications, and start it anew."""
        for operation in ("shutdown", "start"):
            command = [sys.executable, "-m", "worker.sandbox.serve_driver", operation, str(self._serve_port)]
            environ = clean_environment() | self.environment()
            done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=seconds)
            if done.returncode:
                raise SandboxError(f"Ray Serve: {operation} failed\n{done.stderr[-2000:]}")

    def stop(self) -> None:
        """Kill every process of this Ray: draining the node would take 30 s."""
        for process in (self._serve_starter, self.process):
            if process is not None:
                process.stop()

    def _options(self) -> list[str]:
        ports = self._ports | {
            "dashboard-agent-listen-port": free_port(),
            "node-manager-port": 0,
            "object-manager-port": 0,
        }
        return [
            f"--node-ip-address={self._node_address}",
            "--dashboard-host=127.0.0.1",
            "--include-dashboard=true",
            f"--num-cpus={self._num_cpus}",
            "--num-gpus=0",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={self.temp_dir}",
            "--disable-usage-stats",
            *(f"--{name}={port}" for name, port in ports.items()),
        ]

    def _tuning(self) -> dict[str, str]:
        return {
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray gives its processes the least priority; on a busy machine they would hardly start.
            "RAY_worker_niceness": "0",
            # Serve kills a proxy that is not ready after 5 s.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            # Ray Client's server gives up a process that takes longer than 30 s to start.
            "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "120",
            # Interval at which resources in use are reported; the default of 5 s is too old for the agent.
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "AUTOSCALER_METRIC_PORT": str(free_port()),
            "DASHBOARD_METRIC_PORT": str(free_port()),
        }

    def _serve_is_up(self) -> bool:
        assert self._serve_starter is not None
        # A Serve that has started may still be too busy to answer.
        if self._serve_starter.exit_code and not self._serve_answers():
            raise SandboxError(f"Ray Serve did not start\n{self._serve_starter.tail()}")
        return not self._serve_starter.alive and self._resources_are_known()

    def _serve_answers(self) -> bool:
        try:
            httpx.get(f"{self.serve_url}/-/healthz", timeout=2, trust_env=False)
        except httpx.TransportError:
            return False
        return True

    def _resources_are_known(self) -> bool:
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            url = f"{self.dashboard_url}/api/cluster_status"
            answer = httpx.get(url, headers=headers, timeout=2, trust_env=False)
            status = answer.raise_for_status().json()["data"]["clusterStatus"]
        except httpx.HTTPError:
            return False
        return bool(status and status["loadMetricsReport"]["usageByNode"])
