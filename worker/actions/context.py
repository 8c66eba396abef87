"""What an action gets from its run: settings, clients, a logger, and where what it reports goes."""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.plugins.output import OutputCollector
    from worker.plugins.requests import ActionRequest, ClientAccess

logger = logging.getLogger("synapse.plugin")


class PluginEnvironment(dict[str, str]):
    """The run's settings by name; it is not the process's environment (contract: "Plugins")."""

    def get_str(self, name: str, default: str = "") -> str:
        """Look a setting up.

        Args:
            name: The setting's name, for example `SYNAPSE_HOST`.
            default: What to return when it is not set.

        Returns:
            The setting's value as text.
        """
        return self.get(name, default)


class RuntimeContext:
    """What an action gets from its run.

    Attributes:
        env: The run's settings.
        job_id: The backend's id of the job; None in a plain process.
        client: A `BackendClient` with the plugin's own token; None without WORKER_PLUGIN_ACCESS_TOKEN.
        agent_client: An `AgentClient` with the same token; None without one or without an agent's URL.
        logger: A logger of the standard library. In a host its lines are those of the run's log.
        language: The language for messages to users, such as `en`.
        output: In a host, what collects messages, progress and metrics for the run.
    """

    def __init__(
        self,
        env: Mapping[str, str] | None = None,
        job_id: str | None = None,
        client: Any = None,
        agent_client: Any = None,
        logger: Any = logger,
        language: str = "en",
    ) -> None:
        """Make a context, for example for a test.

        Args:
            env: The run's settings; none by default.
            job_id: The backend's id of the job.
            client: A client of the backend, or a fake of it.
            agent_client: A client of the agent, or a fake of it.
            logger: A logger; by default the one named `synapse.plugin`.
            language: The language for messages to users.
        """
        self.env = PluginEnvironment(env or {})
        self.job_id = job_id
        self.client = client
        self.agent_client = agent_client
        self.logger = logger
        self.language = language
        self.output: OutputCollector | None = None

    @classmethod
    def from_request(
        cls, request: "ActionRequest", output: "OutputCollector | None" = None
    ) -> "RuntimeContext":
        """Make the context of a run that the worker started.

        Args:
            request: What the host received from the worker.
            output: What collects the messages, progress and metrics of the call.

        Returns:
            A context whose clients use the plugin's own token.
        """
        client, agent_client = _plugin_clients(request.clients)
        made = cls(request.env, request.job, client, agent_client, language=request.language)
        if output is not None:
            made.output, made.logger = output, _logger_of(output)
        return made

    @classmethod
    def from_environ(cls) -> "RuntimeContext":
        """Make a context from the process's environment, to try an action out in a plain process.

        The clients use SYNAPSE_ACCESS_TOKEN, because a direct run also does the worker's steps, which write.

        Returns:
            A context whose `env` holds the variables SYNAPSE_* and RAY_ADDRESS.
        """
        env = {
            name: value for name, value in os.environ.items() if name.startswith(("SYNAPSE_", "RAY_ADDRESS"))
        }
        host = env.get("SYNAPSE_HOST")
        token = env.get("SYNAPSE_ACCESS_TOKEN") or os.environ.get("WORKER_PLUGIN_ACCESS_TOKEN")
        if not host or not token:
            return cls(env)
        from worker.platform import AgentClient, BackendClient

        token, tenant = token.strip(), env.get("SYNAPSE_TENANT") or None
        client = BackendClient(host, token, tenant=tenant)
        if not env.get("SYNAPSE_AGENT_URL"):
            return cls(env, client=client)
        agent_token = env.get("SYNAPSE_AGENT_TOKEN", "").strip()
        agent = AgentClient(env["SYNAPSE_AGENT_URL"], agent_token, user_token=token, tenant=tenant)
        return cls(env, client=client, agent_client=agent)

    def log(self, event: str, data: Mapping[str, Any], file: str | None = None, level: str = "info") -> None:
        """Log an event with data: a line of the run's log, and an entry of this event for the backend.

        Args:
            event: The kind of event, such as `checkpoint`.
            data: What belongs to it.
            file: Path or URL of a file that belongs to it; its content is not sent.
            level: One of `debug`, `info`, `success`, `warning`, `danger`, `error` and `critical`.
        """
        content = {**data, "file": file} if file else dict(data)
        if self.output is not None:
            self.output.add(event, content, level)
        else:
            self.logger.log(_logging_level(level), event, extra={"data": content})

    def log_message(
        self, text: str | Mapping[str, str], level: str = "info", step: str | None = None, **values: Any
    ) -> None:
        """Log a message for users.

        Args:
            text: The message, or messages by language, of which the run's is taken, else that in English.
            level: As of `log`.
            step: The step that it belongs to.
            **values: What is put in for `{name}` in the message.
        """
        if isinstance(text, Mapping):
            text = str(text.get(self.language) or text.get("en") or next(iter(text.values()), ""))
        text = text.format(**values) if values else text
        if self.output is not None:
            self.output.message(text, level, step)
        else:
            self.logger.log(_logging_level(level), text)

    def set_progress(self, current: int, total: int, step: str | None = None) -> None:
        """Report progress beside that of the run's own steps.

        Args:
            current: How many units are done.
            total: How many units there are.
            step: The step that the units belong to.
        """
        if self.output is not None:
            self.output.set_progress(current, total, step)
        else:
            self.logger.info("progress", extra={"current": current, "total": total, "step": step})

    def set_metrics(self, value: Mapping[str, float], step: str | None = None) -> None:
        """Report metrics beside those of the run's own steps.

        Args:
            value: Numbers by name.
            step: The step that they belong to.
        """
        if self.output is not None:
            self.output.set_metrics(value, step)
        else:
            self.logger.info("metrics", extra={"metrics": dict(value), "step": step})

    def log_metric(self, category: str, key: str, value: float, **metrics: Any) -> None:
        """Log a value of a series, such as the loss of an epoch.

        Args:
            category: Such as `train`.
            key: Such as `epoch`.
            value: The key's value.
            **metrics: What was measured there.
        """
        self.log("metric", {"category": category, "key": key, "value": value, "metrics": metrics})

    def log_visualization(self, category: str, group: str, index: int, image: str, **meta: Any) -> None:
        """Log that there is an image.

        Args:
            category: Such as `validation`.
            group: Such as the epoch.
            index: The image's place in the group.
            image: Path or URL of the image; its content is not sent.
            **meta: Whatever else belongs to it.
        """
        self.log("visualization", {"category": category, "group": group, "index": index, **meta}, image)


def _logging_level(level: str) -> int:
    names = {"success": "INFO", "danger": "ERROR"}
    return logging.getLevelNamesMapping().get(names.get(level, level.upper()), logging.INFO)


class _OutputHandler(logging.Handler):
    """Adds what is logged to a call's output."""

    def __init__(self, output: "OutputCollector") -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._output.message(self.format(record), record.levelname.lower())
        except Exception:  # the author's arguments
            self.handleError(record)


def _logger_of(output: "OutputCollector") -> logging.Logger:
    """A logger of this call alone, which also logs where `synapse.plugin` does."""
    made = logging.Logger(logger.name, logging.INFO)
    made.parent = logger
    made.addHandler(_OutputHandler(output))
    return made


def _plugin_clients(access: "ClientAccess | None") -> tuple[Any, Any]:
    """Clients with the plugin's own token; plugin code never gets the agent's token."""
    if access is None or not access.token:
        return None, None
    from worker.platform import AgentClient, BackendClient

    client = BackendClient(access.host, access.token, tenant=access.tenant)
    if not access.agent_url:
        return client, None
    return client, AgentClient(access.agent_url, access.token, tenant=access.tenant)
