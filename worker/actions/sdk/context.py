"""What code of the published SDK expects around it: the SDK's own context, logger, environment and clients.

Its modules are imported by name and only here, in the process in which the author's module has loaded them.
"""

from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.plugins.output import OutputCollector
    from worker.plugins.requests import ActionRequest


def make_context(request: "ActionRequest") -> Any:
    """Make the SDK's `RuntimeContext` of a run.

    Args:
        request: What the host received from the worker.

    Returns:
        A context whose clients have the plugin's own token, and whose logger's `output` is to be set.
    """
    context = import_module("synapse_sdk.plugins.context")
    client, agent_client = _clients(request)
    return context.RuntimeContext(
        logger=_logger_class()(),
        env=context.PluginEnvironment(dict(request.env)),
        job_id=request.job,
        client=client,
        agent_client=agent_client,
        language=request.language,
    )


def _clients(request: "ActionRequest") -> tuple[Any, Any]:
    access = request.clients
    if access is None or not access.token:
        return None, None
    backend = import_module("synapse_sdk.clients.backend")
    client = backend.BackendClient(access.host, access_token=access.token, tenant=access.tenant)
    if not access.agent_url:
        return client, None
    agent = import_module("synapse_sdk.clients.agent")
    return client, agent.AgentClient(access.agent_url, access.token, tenant=access.tenant)


@lru_cache(maxsize=1)
def _logger_class() -> type[Any]:
    """The SDK's console logger, which writes to the run's log, progress and metrics and not to a console."""
    console = import_module("synapse_sdk.loggers").ConsoleLogger
    level = import_module("synapse_sdk.plugins.models.logger").LogLevel.INFO

    class RunLogger(console):  # type: ignore[misc, valid-type]
        """Checks what it gets as the SDK's loggers do."""

        output: "OutputCollector | None" = None

        def _log_impl(
            self, event: str, data: dict[str, Any], file: str | None, step: str | None, level: Any = None
        ) -> None:
            if self.output is not None:
                content = {**data, "file": file} if file else data
                self.output.add(event, content, getattr(level, "value", "info"), step)

        def _on_progress(self, progress: Any, step: str | None) -> None:
            if self.output is not None:
                self.output.set_progress(progress.percent, 100, step)

        def _on_metrics(self, step: str, metrics: dict[str, Any]) -> None:
            if self.output is not None:
                self.output.set_metrics(metrics, step)

        def log_event(self, event: str, data: dict[str, Any], file: str | None = None) -> None:
            self.log(level, event, data, file)

        def log_metric(self, category: str, key: str, value: float, **metrics: Any) -> None:
            self.log(level, "metric", {"category": category, "key": key, "value": value, "metrics": metrics})

        def log_visualization(self, category: str, group: str, index: int, image: str, **meta: Any) -> None:
            data = {"category": category, "group": group, "index": index, **meta}
            self.log(level, "visualization", data, image)

        def log_trials(self, data: dict[str, Any] | None = None, **parts: Any) -> None:
            self.log(level, "trials", parts if data is None else data)

    return RunLogger
