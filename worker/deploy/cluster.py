"""The Serve applications on the cluster of RAY_ADDRESS, as the steps of a deployment see them."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from shared.messages import JsonObject
from shared.statuses import ServeApplicationStatus
from worker.actions import serve_contents
from worker.actions.serve_contents import RollBack
from worker.actions.serve_state import (
    deployment_digest,
    interpret_serve_status,
    is_content_of,
    live_applications,
    route_in_force,
    serve_details,
)
from worker.actions.serve_submit import remove_application
from worker.plugins import PluginHostUnavailableError, RayDriverError
from worker.plugins.ray_driver import RayConnection

ANSWER_TIMEOUT_SECONDS = 60.0
"""Then the driver process is ended, and with it what it has loaded: the first question is given its time."""


@dataclass(frozen=True)
class ServeState:
    """What Serve shows of one application; by default that there is none."""

    exists: bool = False
    bucket: str = "pending"
    """`running`, `failed` or `pending`."""
    status: str | None = None
    reason: str = ""
    """Serve's explanation of a failure, without secrets."""
    digests: frozenset[str] = frozenset()
    """The digests of the plans with which its deployments were submitted."""
    route_prefix: str | None = None
    """The route under which Serve's proxy knows it."""
    is_serve_up: bool = True
    """False while Serve does not run or is starting: what it does not show may be there."""

    def has_digest(self, digest: str) -> bool:
        """Whether it was submitted with `digest`; true also while Serve does not show any digest yet."""
        return self.exists and (not self.digests or bool(self.digests_of(digest)))

    def digests_of(self, digest: str) -> frozenset[str]:
        """Those of its digests that are of the plan with `digest`: that, or one of a run that was forced."""
        return frozenset(shown for shown in self.digests if is_content_of(shown, digest))


class Cluster(Protocol):
    """Raises `PluginHostUnavailableError` when the cluster does not answer."""

    def state(self, app_name: str, max_age: float = 0.0) -> ServeState: ...
    def remove(self, app_name: str) -> None: ...
    def put_back(self, app_name: str, failed: str) -> bool: ...


SNAPSHOT_SECONDS = 1.0
"""All looks at applications within this time share one answer of Serve's."""


@dataclass(frozen=True)
class Snapshot:
    """Serve's answer about all applications, or the error, and when it was asked (monotonic clock)."""

    asked_at: float = -math.inf
    applications: Mapping[str, JsonObject] | None = None
    """None while Serve does not run or is starting."""
    error: PluginHostUnavailableError | None = None


class RayCluster:
    """Asks Serve through this process's connection to Ray. Every call ends within seconds."""

    def __init__(self, connection: RayConnection) -> None:
        self._connection = connection
        self._snapshot = Snapshot()
        self._lock = threading.Lock()

    def live_applications(self) -> dict[str, JsonObject] | None:
        """Serve's details of all applications; None while Serve does not run or is starting."""
        found = self._ask_serve(live_applications)
        return None if found is None else dict(found)

    def state(self, app_name: str, max_age: float = 0.0) -> ServeState:
        """What Serve shows of the application.

        Serve may have been asked up to `max_age` seconds ago, but no longer ago than `SNAPSHOT_SECONDS`.
        """
        live = self._latest(time.monotonic() - min(max(max_age, 0.0), SNAPSHOT_SECONDS))
        found = (live or {}).get(app_name)
        return read_state(found) if found else ServeState(is_serve_up=live is not None)

    def _latest(self, not_before: float) -> Mapping[str, JsonObject] | None:
        """The applications as Serve showed them when it was asked last, or is asked now.

        Of several threads one asks; an error is that of all that wait for the answer.
        """
        with self._lock:
            if self._snapshot.asked_at < not_before:
                asked_at = time.monotonic()
                try:
                    self._snapshot = Snapshot(asked_at, self.live_applications())
                except PluginHostUnavailableError as error:
                    self._snapshot = Snapshot(asked_at, error=error)
            if self._snapshot.error is not None:
                raise PluginHostUnavailableError(str(self._snapshot.error))
            return self._snapshot.applications

    def remove(self, app_name: str) -> None:
        """Remove the application, without waiting until its replicas have stopped; safe to repeat."""
        self._ask_serve(remove_application, app_name, False)

    def put_back(self, app_name: str, failed: str) -> bool:
        """Let the application run again what the failed plan has replaced; false when nothing is kept."""
        return bool(self._ask_serve(_put_back, app_name, failed))

    def kept_packages(self) -> dict[str, list[str]]:
        """The packages of what the applications ran before, by application."""
        return dict(self._ask_serve(serve_contents.kept_packages))

    def roll_back(self, app_name: str) -> RollBack:
        """Let the application run again what it ran before its last update."""
        return RollBack(self._ask_serve(_roll_back, app_name))

    def undeploy(self, app_name: str) -> None:
        """Remove the application and what is kept of it, and wait until its replicas have stopped."""
        self._ask_serve(remove_application, app_name)
        self._ask_serve(serve_contents.forget_contents, app_name)

    def _ask_serve(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._connection.connect()
        try:
            return self._connection.call(function, *arguments, timeout=ANSWER_TIMEOUT_SECONDS)
        except RayDriverError as error:
            raise PluginHostUnavailableError(f"Ray Serve did not answer: {error}") from None


def _put_back(app_name: str, failed: str) -> bool:
    return serve_contents.put_back(app_name, serve_details().get(app_name), failed)


def _roll_back(app_name: str) -> str:
    return serve_contents.roll_back(app_name, serve_details().get(app_name)).value


def read_state(details: JsonObject) -> ServeState:
    """Read one application of Serve's details."""
    bucket, status, reason = interpret_serve_status(details)
    digests = {deployment_digest(item) for item in (details.get("deployments") or {}).values()}
    name = str(getattr(status, "value", status)) if status is not None else None
    if name == ServeApplicationStatus.DELETING:
        # Treated as absent: it is not waited for or removed again, and submitting it revives it.
        return ServeState()
    shown = frozenset(digest for digest in digests if digest)
    return ServeState(True, bucket, name, reason, shown, route_in_force(details))


def packages_of(details: JsonObject) -> list[str]:
    """The URIs of the packages with which one application of Serve's details was submitted."""
    uris: list[Any] = []
    for item in (details.get("deployments") or {}).values():
        options = (item.get("deployment_config") or {}).get("ray_actor_options") or {}
        environment = options.get("runtime_env") or {}
        uris += [environment.get("working_dir"), *(environment.get("py_modules") or [])]
    return sorted({uri for uri in uris if isinstance(uri, str) and "://" in uri})
