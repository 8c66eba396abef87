"""The Serve applications of the cluster of RAY_ADDRESS, as the steps see them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from shared.statuses import ServeApplicationStatus
from worker.actions.serve_state import interpret_serve_status, serve_details
from worker.actions.serve_submit import DIGEST_VARIABLE, remove_application
from worker.plugins import PluginHostUnavailableError
from worker.plugins.ray_session import call_with_timeout, session

T = TypeVar("T")

LOOK_SECONDS = 10.0


@dataclass(frozen=True)
class ServeState:
    """An application; `bucket` is `running`, `failed` or `pending`, `reason` Serve's explanation, cleaned."""

    exists: bool = False
    bucket: str = "pending"
    status: str | None = None
    reason: str = ""
    digests: frozenset[str] = frozenset()

    def is_of(self, digest: str) -> bool:
        """Whether what Serve holds was submitted with `digest`; also while Serve does not show it yet."""
        return self.exists and (not self.digests or digest in self.digests)


class Cluster(Protocol):
    """Raises `PluginHostUnavailableError` when the cluster does not answer."""

    def state(self, app_name: str) -> ServeState: ...
    def remove(self, app_name: str) -> None: ...


class RayCluster:
    """Through this process's connection to Ray. Every call ends in seconds, also when Ray is gone."""

    def __init__(self, address: str | None) -> None:
        self._address = address

    def state(self, app_name: str) -> ServeState:
        """What Serve says of the application."""
        session.connect(self._address)
        found = _serve_call(serve_details).get(app_name)
        return read_state(found) if found else ServeState()

    def remove(self, app_name: str) -> None:
        """Take the application off Serve; nothing happens when there is none of that name."""
        session.connect(self._address)
        _serve_call(lambda: remove_application(app_name, wait=False))


def read_state(details: Mapping[str, Any]) -> ServeState:
    """From an application's part of Serve's details."""
    bucket, status, reason = interpret_serve_status(details)
    digests = {_digest(item) for item in (details.get("deployments") or {}).values()}
    word = str(getattr(status, "value", status)) if status is not None else None
    if word == ServeApplicationStatus.DELETING:
        # What goes is nothing to wait for, to adopt or to remove; a submission over it makes it stay.
        return ServeState()
    return ServeState(True, bucket, word, reason, frozenset(digest for digest in digests if digest))


def _digest(deployment: Mapping[str, Any]) -> str | None:
    config = deployment.get("deployment_config") or {}
    environment = (config.get("ray_actor_options") or {}).get("runtime_env") or {}
    digest = (environment.get("env_vars") or {}).get(DIGEST_VARIABLE)
    return str(digest) if digest else None


def _serve_call(call: Callable[[], T]) -> T:
    """Call Ray Serve; Ray waits for minutes for a cluster that died, a step does not."""
    try:
        return call_with_timeout(LOOK_SECONDS, call)
    except Exception as error:  # whatever Ray raises means that it did not answer
        session.mark_stale()
        why = error if isinstance(error, TimeoutError) else type(error).__name__
        raise PluginHostUnavailableError(f"Ray Serve did not answer: {why}") from None
