"""The host that the settings ask for."""

from pathlib import Path

from worker.plugins.host import PluginHost
from worker.plugins.package import FolderPackages, Packages, RayPackages
from worker.plugins.process_host import ProcessHost
from worker.plugins.ray_host import RayHost
from worker.plugins.ray_session import auth_headers, session
from worker.settings import Settings


def make_host(settings: Settings) -> PluginHost:
    """WORKER_PLUGIN_HOST's host. Nothing is connected before the first call."""

    def packages() -> Packages:
        if settings.worker_package_store:
            return FolderPackages(Path(settings.worker_package_store))
        return RayPackages(session.dashboard_url(), auth_headers())

    ray_host = RayHost(session, settings.ray_address, packages, settings.worker_plugin_timeout_seconds)
    return ray_host if settings.worker_plugin_host == "ray" else ProcessHost(ray_host)
