"""This process's connection to the Ray cluster of RAY_ADDRESS. Never starts a cluster."""

import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from worker.platform import register_secrets
from worker.plugins.errors import PluginHostUnavailableError

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Ray reads both when it is loaded, so they are set before the first `import ray`.
# A call without a connection must fail: Ray would connect by itself, or start a cluster.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Ray ends the whole process when its control store is away for 60 s, but runs that need no Ray must go on.
os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(7 * 24 * 3600))

NAMESPACE = "synapse"
CONNECT_TIMEOUT_SECONDS = 30.0
"""Ray itself waits for minutes when nothing listens at the address."""
PROBE_TIMEOUT_SECONDS = 2.0
RECHECK_SECONDS = 5.0
"""A connection that answered counts as alive for this long."""
SHUTDOWN_TIMEOUT_SECONDS = 10.0


@dataclass
class _Outcome:
    """What came of an attempt to connect; it is written in the thread that connects."""

    is_connected: bool = False
    dashboard: str | None = None
    error: str = ""


class RaySession:
    """The process's connection to Ray, made by the first caller and shared by all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._address: str | None = None
        self._dashboard: str | None = None
        self._checked = 0.0
        self.generation = 0
        """Grows with every new connection; the handles of an older one are invalid."""
        self._attempt: threading.Thread | None = None
        self._outcome = _Outcome()

    def connect(self, address: str | None, timeout: float = CONNECT_TIMEOUT_SECONDS) -> None:
        """Connect within `timeout` seconds; raises `PluginHostUnavailableError` that says what to do."""
        if not address:
            raise PluginHostUnavailableError("no Ray cluster is configured: set RAY_ADDRESS (host:port)")
        with self._lock:
            if self._is_alive(address):
                return
            self._drop()
            _cluster_token()
            _probe(address, min(timeout, PROBE_TIMEOUT_SECONDS))
            self._start(address, timeout)
            self._address = address
            self.generation += 1
            self._checked = time.monotonic()

    def dashboard_url(self) -> str:
        """Base URL of the connected cluster's dashboard, where packages are uploaded."""
        if not self._dashboard:
            # Shortly after the head's start it may not be up yet, so the next connection asks again.
            self.disconnect()
            raise PluginHostUnavailableError(
                "the Ray cluster has no dashboard: start it with the dashboard on"
            )
        return f"http://{self._dashboard}"

    def disconnect(self) -> None:
        """Disconnect; the next `connect` makes a new connection."""
        with self._lock:
            self._drop()

    def is_reachable(self) -> bool:
        """Whether the head that this process is connected to still accepts connections."""
        try:
            _probe(self._address or "", PROBE_TIMEOUT_SECONDS)
        except PluginHostUnavailableError:
            return False
        return True

    def mark_stale(self) -> None:
        """Check the connection before the next call: one failed as calls on a lost connection do."""
        self._checked = 0.0

    def _is_alive(self, address: str) -> bool:
        import ray

        if self._address != address or not ray.is_initialized():
            return False
        if not self.is_reachable():
            return False
        if time.monotonic() - self._checked > RECHECK_SECONDS:
            try:
                if not call_with_timeout(PROBE_TIMEOUT_SECONDS, _nodes_answer):
                    return False
            except TimeoutError:
                return False
            self._checked = time.monotonic()
        return True

    def _start(self, address: str, timeout: float) -> None:
        if self._attempt is None or not self._attempt.is_alive():
            self._outcome = _Outcome()
            self._attempt = threading.Thread(
                target=_init, args=(address, self._outcome), name="ray-connect", daemon=True
            )
            self._attempt.start()
        self._attempt.join(timeout)
        outcome = self._outcome
        if outcome.is_connected:
            self._dashboard = outcome.dashboard
            return
        why = outcome.error or f"no answer within {timeout:.0f} s"
        hint = (
            "; check RAY_AUTH_TOKEN, or the token's file, which RAY_AUTH_MODE=token asks for"
            if os.environ.get("RAY_AUTH_MODE")
            else "; a cluster that asks for a token needs RAY_AUTH_MODE=token"
        )
        raise PluginHostUnavailableError(f"the Ray cluster at RAY_ADDRESS cannot be used: {why}{hint}")

    def _drop(self) -> None:
        import ray

        self._address = None
        if not ray.is_initialized():
            return
        try:
            call_with_timeout(SHUTDOWN_TIMEOUT_SECONDS, ray.shutdown)
        except TimeoutError:
            raise PluginHostUnavailableError(
                "the connection to the Ray cluster was lost and cannot be closed"
            ) from None


def auth_headers() -> dict[str, str]:
    """The header for the dashboard of a cluster that requires a token; empty for others."""
    token = _cluster_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _cluster_token() -> str:
    """The token from Ray's own variables, empty for a cluster that requires none; masked from now on."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return ""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        token = file.read_text().strip() if file.is_file() else ""
    register_secrets([token])
    return token


def _init(address: str, outcome: _Outcome) -> None:
    import ray

    try:
        with tempfile.TemporaryDirectory(prefix="synapse-empty-") as empty:
            # Without a working_dir Ray adds the driver's folder to the path of every process of the cluster,
            # where a package `plugin` in it would hide the releases' packages.
            context = ray.init(
                address,
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
                runtime_env={"working_dir": empty},
            )
        outcome.dashboard = context.dashboard_url
        outcome.is_connected = True
    except (Exception, SystemExit) as error:  # reported by the thread that waits
        outcome.error = type(error).__name__
        logger.warning("ray connection failed", extra={"error_type": type(error).__name__})


def _probe(address: str, timeout: float) -> None:
    """Raise at once when nothing listens at the address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise PluginHostUnavailableError("RAY_ADDRESS must be host:port of the cluster's head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except OSError as error:
        why = type(error).__name__
        raise PluginHostUnavailableError(
            f"the Ray cluster at RAY_ADDRESS cannot be reached ({why}): check the address and that it runs"
        ) from None


def call_with_timeout(seconds: float, call: Callable[[], T]) -> T:
    """Run `call` in a thread, because most calls of Ray have no timeout; return or raise what it does.

    Raises `TimeoutError` when it has not returned in time; the thread is left behind.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="ray-call", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]


def _nodes_answer() -> bool:
    import ray

    try:
        return any(node.get("Alive") for node in ray.nodes())
    except Exception:  # Ray raises errors of many classes; all mean that the connection is unusable
        return False


session = RaySession()
"""The process's one connection."""


def connect(address: str | None, timeout: float = CONNECT_TIMEOUT_SECONDS) -> None:
    """Connect this process to the cluster; see `RaySession.connect`."""
    session.connect(address, timeout)


def dashboard_url() -> str:
    """Base URL of the connected cluster's dashboard."""
    return session.dashboard_url()
