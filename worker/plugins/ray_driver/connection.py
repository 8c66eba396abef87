"""This process's connection to the Ray cluster of RAY_ADDRESS. Never starts a cluster."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from shared.messages import JsonObject
from worker.platform import register_secrets
from worker.plugins.errors import PluginHostUnavailableError, RayDriverError
from worker.plugins.ray_driver import operations
from worker.plugins.ray_driver.process import RayDriver, is_settled
from worker.plugins.run_end import held, wait_for

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_SECONDS = 60.0
"""For the driver process to start and to import Ray, which takes two seconds of computing."""
CONNECT_TIMEOUT_SECONDS = 60.0
"""Ray itself waits for minutes when nothing answers; for Ray Client the head has to start a process."""
PROBE_TIMEOUT_SECONDS = 2.0
CHECK_TIMEOUT_SECONDS = 10.0
RECHECK_SECONDS = 5.0
"""A connection that answered counts as alive for this long."""
FAILURE_SECONDS = 5.0
"""After an attempt to connect that failed, all others fail at once for this long."""


class RayConnection:
    """The process's connection to the cluster at `address`, made by the first caller for all threads."""

    def __init__(self, address: str | None, driver: RayDriver | None = None) -> None:
        self.address = address
        self.driver = driver or RayDriver()
        self.generation = 0
        """Grows with every new connection; the ids of calls and actors of an older one are invalid."""
        self.versions: JsonObject = {}
        """Of Ray and Python, here and on the cluster."""
        self._lock = threading.Lock()
        self._is_connected = False
        self._attempt: Future[None] | None = None
        self._checked = 0.0
        self._failure: PluginHostUnavailableError | None = None
        self._failed = 0.0

    def connect(self, timeout: float = CONNECT_TIMEOUT_SECONDS) -> None:
        """Connect within `timeout` seconds; raises `PluginHostUnavailableError` that says what to do.

        The attempt is made in a thread of its own: a caller whose run ends leaves it to the others.
        """
        if not self.address:
            raise PluginHostUnavailableError(
                "no Ray cluster is configured: set RAY_ADDRESS (host:port, or ray://host:port)"
            )
        with held(self._lock):
            attempt = self._attempt
            if attempt is None or attempt.done():
                if self._is_alive():
                    return
                if self._failure is not None and time.monotonic() - self._failed < FAILURE_SECONDS:
                    raise PluginHostUnavailableError(str(self._failure))
                self._is_connected = False
                attempt = Future()
                arguments = attempt, self.address, timeout
                threading.Thread(target=self._try, args=arguments, name="ray-connect", daemon=True).start()
                self._attempt = attempt
        made = attempt
        wait_for(lambda seconds: is_settled(made, seconds))
        if (error := made.exception()) is not None:
            is_known = isinstance(error, PluginHostUnavailableError)
            raise PluginHostUnavailableError(str(error)) if is_known else error

    def _try(self, attempt: "Future[None]", address: str, timeout: float) -> None:
        try:
            _cluster_token()
            _probe(address, min(timeout, PROBE_TIMEOUT_SECONDS))
            self._start(address, timeout)
        except Exception as error:
            if isinstance(error, PluginHostUnavailableError):
                self._failure, self._failed = error, time.monotonic()
            attempt.set_exception(error)
        else:
            self._failure = None
            attempt.set_result(None)

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        timeout: float,
        undo: Callable[[Any], Any] | None = None,
    ) -> Any:
        """`RayDriver.call` on this connection, which is checked before the next call when this one fails."""
        try:
            return self.driver.call(function, *arguments, timeout=timeout, undo=undo)
        except RayDriverError:
            self.mark_stale()
            raise

    def is_reachable(self) -> bool:
        """Whether the head that this process is connected to still accepts connections."""
        try:
            _probe(self.address or "", PROBE_TIMEOUT_SECONDS)
        except PluginHostUnavailableError:
            return False
        return True

    def mark_stale(self) -> None:
        """Check the connection before the next call: one failed as calls on a lost connection do."""
        self._checked = 0.0

    def close(self) -> None:
        """Disconnect; the next `connect` makes a new connection."""
        with self._lock:
            self.driver.kill()
            if self._attempt is not None:
                wait([self._attempt])
            self.driver.kill()
            self._is_connected = False

    def _is_alive(self) -> bool:
        if not self._is_connected or not self.driver.is_running or not self.is_reachable():
            return False
        if time.monotonic() - self._checked > RECHECK_SECONDS:
            try:
                if not self.driver.call(operations.is_usable, timeout=CHECK_TIMEOUT_SECONDS):
                    return False
            except RayDriverError:
                return False
            self._checked = time.monotonic()
        return True

    def _start(self, address: str, timeout: float) -> None:
        """A new connection is a new process, because Ray may never return from closing a lost one."""
        self.driver.start()
        try:
            self.driver.call(operations.load_ray, timeout=LOAD_TIMEOUT_SECONDS)
            self.versions = self.driver.call(operations.connect, address, timeout=timeout)
            # While the cluster starts the process of the first call.
            self.driver.send(operations.load_serve)
        except RayDriverError as error:
            self.driver.kill()
            logger.warning("ray connection failed", extra={"error_type": error.error_type})
            raise PluginHostUnavailableError(_failure_text(address, error)) from None
        self.generation += 1
        self._is_connected = True
        self._checked = time.monotonic()


def _failure_text(address: str, error: RayDriverError) -> str:
    """One line that says what is wrong and what to do."""
    what = "the Ray cluster at RAY_ADDRESS cannot be used"
    if error.error_type == operations.NoRayNodeError.__name__:
        host = address.rpartition(":")[0]
        return (
            f"{what}: host:port is for a worker on a node of the cluster, and no node runs here; "
            f"set ray://{host}:10001 (or the port of the head's Ray Client server)"
        )
    if "Version mismatch" in error.text:
        return f"{what}: {' '.join(error.text.split())}"
    if error.error_type == "ConnectionAbortedError" and is_client_address(address):
        return f"{what}: its head could not start a process for this worker (see its ray_client_server.err)"
    why = error.args[0]
    if error.error_type in ("TimeoutError", "ConnectionError") and is_client_address(address):
        return f"{what}: {why}; is this the port of the head's Ray Client server (10001 by default)?"
    if os.environ.get("RAY_AUTH_MODE"):
        return f"{what}: {why}; check RAY_AUTH_TOKEN, or the token's file, which RAY_AUTH_MODE=token asks for"
    return f"{what}: {why}; a cluster that asks for a token needs RAY_AUTH_MODE=token"


def is_client_address(address: str) -> bool:
    """Whether the address is that of a Ray Client server, which any machine can use."""
    return address.startswith(operations.CLIENT_SCHEME)


def _cluster_token() -> str:
    """The token from Ray's own variables, empty for a cluster that requires none; masked from now on."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return ""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        token = file.read_text().strip() if file.is_file() else ""
    register_secrets([token], forever=True)
    return token


def _probe(address: str, timeout: float) -> None:
    """Raise at once when nothing listens at the address."""
    host, _, port = address.removeprefix(operations.CLIENT_SCHEME).rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise PluginHostUnavailableError(
            "RAY_ADDRESS must be host:port of the cluster's head, or ray://host:port"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except OSError as error:
        why = type(error).__name__
        raise PluginHostUnavailableError(
            f"the Ray cluster at RAY_ADDRESS cannot be reached ({why}): check the address and that it runs"
        ) from None
