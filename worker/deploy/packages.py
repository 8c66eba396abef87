"""Which packages Ray must keep: those of the applications that Serve runs."""

import json

import structlog

from shared.channels import redis_prefix
from shared.messages import JsonObject
from worker.deploy.cluster import RayCluster, packages_of
from worker.plugins import PluginError, PluginHostUnavailableError
from worker.services import Services

log = structlog.get_logger(__name__)

PIN_INTERVAL_SECONDS = 240
"""Ray deletes a package to which nothing has referred for ten minutes."""


class DeployedPackages:
    """The packages of the applications on this worker's cluster, which Ray must keep.

    An application goes on with the content that was submitted; its release may have other content by now. So
    what Serve shows is kept, and while it does not answer, what it showed last.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        cluster = services.settings.worker_agent or "any"
        self._key = f"{redis_prefix()}:deployed:{{{cluster}}}"
        self._packages_key = f"{self._key}:packages"

    def add(self, app_name: str, release: str) -> None:
        """Store that `app_name` runs the code of `release`."""
        self._services.redis.hset(self._key, app_name, release)

    def pin(self) -> None:
        """Let Ray keep every package in use; of all workers one does it, every four minutes."""
        services = self._services
        redis = services.redis
        if not services.settings.ray_address or not redis.exists(self._key):
            return
        if not redis.set(f"{self._key}:pinned", 1, nx=True, ex=PIN_INTERVAL_SECONDS):
            return
        try:
            services.ray.connect()
            for package, release in self._in_use(self._live_applications()).items():
                self._pin(package, release)
        except PluginHostUnavailableError as error:
            redis.delete(f"{self._key}:pinned")
            log.warning("packages not pinned", error_type=type(error).__name__)

    def _pin(self, package: str, release: str) -> None:
        """Pin one package; one that is gone and cannot be built again leaves the others alone."""
        host = self._services.host
        try:
            if not host.pin(package) and not host.restore(package, self._services.store.get(release)):
                log.warning("package lost, deploy the release again", plugin=release)
        except PluginHostUnavailableError:
            raise
        except (PluginError, OSError) as error:
            log.warning("package not pinned", plugin=release, error_type=type(error).__name__)

    def _in_use(self, live: dict[str, JsonObject]) -> dict[str, str]:
        """The URIs of the packages in use, each with the name of its release."""
        redis = self._services.redis
        known = redis.hgetall(self._packages_key)
        used: dict[str, str] = {}
        for app_name, release in redis.hgetall(self._key).items():
            if live and app_name not in live:
                redis.hdel(self._key, app_name)
                redis.hdel(self._packages_key, app_name)
                continue
            shown = packages_of(live.get(app_name, {}))
            if shown:
                redis.hset(self._packages_key, app_name, json.dumps(shown))
            packages = shown or json.loads(known.get(app_name, "[]"))
            used |= dict.fromkeys(packages, release)
        return used

    def _live_applications(self) -> dict[str, JsonObject]:
        """What Serve runs; empty also when it does not answer, and then nothing is taken to be gone."""
        try:
            return RayCluster(self._services.ray).applications()
        except PluginHostUnavailableError:
            return {}
