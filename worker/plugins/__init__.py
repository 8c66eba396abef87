"""Plugin releases: find, verify and unpack them, and run their code apart from the worker's own."""

from worker.plugins.config import ActionConfig, ReleaseConfig
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
from worker.plugins.process_host import ProcessHost
from worker.plugins.ray_host import RayHost
from worker.plugins.requests import ActionRequest, ClientAccess, PluginHost, request_for
from worker.plugins.run_end import check_run, waits_for_run
from worker.plugins.store import PluginStore, Release

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
