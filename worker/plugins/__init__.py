"""Plugin releases: find, verify and unpack them, and run their code apart from the worker's own."""

from typing import TYPE_CHECKING

from worker import load_on_use
from worker.plugins.errors import (
    HUNG_OR_DIED,
    PluginCallError,
    PluginError,
    PluginHostBusyError,
    PluginHostUnavailableError,
    PluginProcessDiedError,
    PluginTimeoutError,
    RayDriverError,
    ReleaseInvalidError,
    ReleaseNotFoundError,
    RunEndedError,
)
from worker.plugins.run_end import check_run, waits_for_run

if TYPE_CHECKING:
    from worker.plugins.config import ActionConfig, ReleaseConfig
    from worker.plugins.process_host import ProcessHost
    from worker.plugins.ray_host import RayHost
    from worker.plugins.requests import ActionRequest, ClientAccess, PluginHost, request_for
    from worker.plugins.store import PluginStore, Release
else:
    # The worker's side, without which the processes of Ray start faster.
    __getattr__ = load_on_use(
        __name__,
        {
            "ActionConfig": "worker.plugins.config",
            "ReleaseConfig": "worker.plugins.config",
            "ProcessHost": "worker.plugins.process_host",
            "RayHost": "worker.plugins.ray_host",
            "ActionRequest": "worker.plugins.requests",
            "ClientAccess": "worker.plugins.requests",
            "PluginHost": "worker.plugins.requests",
            "request_for": "worker.plugins.requests",
            "PluginStore": "worker.plugins.store",
            "Release": "worker.plugins.store",
        },
    )


__all__ = [  # noqa: RUF022 - grouped by topic
    # releases
    "PluginStore",
    "Release",
    "ReleaseConfig",
    "ActionConfig",
    # running their code
    "PluginHost",
    "RayHost",
    "ProcessHost",
    "ActionRequest",
    "ClientAccess",
    "request_for",
    "waits_for_run",
    "check_run",
    # errors
    "PluginError",
    "ReleaseNotFoundError",
    "ReleaseInvalidError",
    "PluginCallError",
    "PluginHostUnavailableError",
    "PluginHostBusyError",
    "RayDriverError",
    "PluginTimeoutError",
    "PluginProcessDiedError",
    "HUNG_OR_DIED",
    "RunEndedError",
]
