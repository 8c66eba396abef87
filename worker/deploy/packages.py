"""Which packages Ray must keep: those of the applications that Serve runs."""

import json

import structlog

from shared.channels import redis_prefix
from shared.messages import JsonObject
from worker.deploy.cluster import RayCluster, packages_of
from worker.plugins import PluginHostUnavailableError
from worker.services import Services

log = structlog.get_logger(__name__)

PIN_INTERVAL_SECONDS = 240
"""Ray deletes a package to which nothing has referred for ten minutes."""


class DeployedPackages:
    """The packages of the applications on this worker's cluster, which Ray must keep.

    An application goes on with the content that was submitted; its release may have other content by now. So
    what Serve shows is kept, and while it does not answer or is starting, what it showed last.
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
            # Before Serve is asked, which may not show yet what is added after that.
            added = redis.hgetall(self._key)
            live = self._live_applications()
            # First those of older contents: of a package in both, the release is the one that runs.
            used = self._kept(added, live) | self._in_use(added, live)
            # All are pinned first: one that cannot be stored again must not cost the others theirs.
            lost = {package: release for package, release in used.items() if not services.host.pin(package)}
            for package, release in lost.items():
                self._restore(package, release)
        except PluginHostUnavailableError as error:
            redis.delete(f"{self._key}:pinned")
            log.warning("packages not pinned", error_type=type(error).__name__)

    def _restore(self, package: str, release: str) -> None:
        """Store a package again; one whose release cannot be read leaves the others alone."""
        try:
            if not self._services.host.restore(package, self._services.store.get(release)):
                log.warning("package lost, deploy the release again", plugin=release)
        except PluginHostUnavailableError:
            raise
        except Exception as error:  # whatever the release's files make of the reading
            log.warning("package not pinned", plugin=release, error_type=type(error).__name__)

    def _in_use(self, added: dict[str, str], live: dict[str, JsonObject] | None) -> dict[str, str]:
        """The URIs of the packages in use, each with the name of its release.

        `added`: the applications with their releases; `live`: what Serve runs, None while it is not known.
        """
        redis = self._services.redis
        known = redis.hgetall(self._packages_key)
        used: dict[str, str] = {}
        for app_name, release in added.items():
            if live is not None and app_name not in live:
                redis.hdel(self._key, app_name)
                redis.hdel(self._packages_key, app_name)
                continue
            shown = packages_of((live or {}).get(app_name, {}))
            if shown:
                redis.hset(self._packages_key, app_name, json.dumps(shown))
            packages = shown or json.loads(known.get(app_name, "[]"))
            used |= dict.fromkeys(packages, release)
        return used

    def _kept(self, added: dict[str, str], live: dict[str, JsonObject] | None) -> dict[str, str]:
        """The URIs of the packages of what the applications ran before; see `_in_use`."""
        try:
            kept = RayCluster(self._services.ray).kept_packages()
        except PluginHostUnavailableError:
            return {}
        names = [name for name in kept if name in added and (live is None or name in live)]
        return {package: added[name] for name in names for package in kept[name]}

    def _live_applications(self) -> dict[str, JsonObject] | None:
        """What Serve runs; None when it does not answer or is starting: then nothing is taken to be gone."""
        try:
            return RayCluster(self._services.ray).live_applications()
        except PluginHostUnavailableError:
            return None
