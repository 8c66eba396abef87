"""Keeps the packages of what runs: Ray's store forgets them, and a replica could not start again."""

from typing import Any

import structlog

from worker.actions.serve_state import serve_details
from worker.plugins import PluginError, Release, ReleaseNotFoundError
from worker.plugins.ray_session import bounded, session
from worker.services import Services

log = structlog.get_logger(__name__)

SECONDS_BETWEEN_PINS = 240
"""Ray forgets what nobody looked at for ten minutes."""
LOOK_SECONDS = 10.0


class DeployedPackages:
    """The releases behind the applications of this worker's cluster, listed in Redis."""

    def __init__(self, services: Services) -> None:
        self._services = services
        cluster = services.settings.worker_agent or "any"
        self._key = f"synapse:deployed:{{{cluster}}}"

    def remember(self, app_name: str, release: str) -> None:
        """`app_name` runs the code of `release` from now on."""
        self._services.redis.hset(self._key, app_name, release)

    def pin(self) -> None:
        """Look at every package that is in use; one worker does, at most once in four minutes."""
        services = self._services
        redis, address = services.redis, services.settings.ray_address
        if not address or not redis.exists(self._key):
            return
        if not redis.set(f"{self._key}:pinned", 1, nx=True, ex=SECONDS_BETWEEN_PINS):
            return
        try:
            session.connect(address)
            nothing: dict[str, dict[str, Any]] = {}
            live = bounded(LOOK_SECONDS, serve_details, nothing)
            services.host.pin(self._in_use(live))
        except PluginError as error:
            redis.delete(f"{self._key}:pinned")
            log.warning("packages not looked at", error_type=type(error).__name__)

    def _in_use(self, live: dict[str, dict[str, Any]]) -> list[Release]:
        releases = []
        for app_name, name in self._services.redis.hgetall(self._key).items():
            if live and app_name not in live:
                self._services.redis.hdel(self._key, app_name)
                continue
            try:
                releases.append(self._services.store.get(name))
            except ReleaseNotFoundError:
                log.warning("a running release is not in the store", plugin=name)
        return releases
