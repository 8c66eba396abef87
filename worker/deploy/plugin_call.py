"""Call an operation of the run's deployment action."""

from typing import Any

from worker.plugins import PluginCallError, PluginError, PluginHostUnavailableError
from worker.runs.model import Run, RunFailedError
from worker.services import Services


def call(run: Run, services: Services, operation: str, payload: Any) -> Any:
    """What the author's code answers; what it raises ends the run, a host that is away does not."""
    try:
        release, request = services.action_of(run)
        return services.host.call(release, request, operation, payload)
    except PluginHostUnavailableError:
        raise
    except PluginError as error:
        if isinstance(error, PluginCallError) and error.trace:
            services.runs.events.message(run.job, error.trace, step="deploy", level="error")
        failure = RunFailedError(f"Plugin {run.message.plugin} failed to {operation}: {error}")
    raise failure
