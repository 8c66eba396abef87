"""What an action is given besides its parameters."""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.plugins.requests import ActionRequest, ClientAccess

logger = logging.getLogger("synapse.plugin")


class PluginEnvironment(dict[str, str]):
    """The run's settings by name. Not the process's environment."""

    def get_str(self, name: str, default: str = "") -> str:
        """The setting, or `default` when it is not there."""
        return self.get(name, default)


class RuntimeContext:
    """`env`, clients and a logger. The clients are None without a token of the plugin's own."""

    def __init__(
        self,
        env: Mapping[str, str] | None = None,
        job_id: str | None = None,
        client: Any = None,
        agent_client: Any = None,
        logger: Any = logger,
        language: str = "en",
    ) -> None:
        self.env = PluginEnvironment(env or {})
        self.job_id = job_id
        self.client = client
        self.agent_client = agent_client
        self.logger = logger
        self.language = language

    @classmethod
    def from_request(cls, request: "ActionRequest") -> "RuntimeContext":
        """The context of a run that the worker started."""
        client, agent_client = _plugins_clients(request.clients)
        return cls(request.env, request.job, client, agent_client, language=request.language)

    @classmethod
    def from_environ(cls) -> "RuntimeContext":
        """For trying an action out in a plain process: the settings are the process's environment.

        The clients are the worker's own: what runs here does the worker's steps too, which write.
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

    def set_progress(self, current: int, total: int, step: str | None = None) -> None:
        """Say how far the action is."""
        self.logger.info("progress", extra={"current": current, "total": total, "step": step})

    def set_metrics(self, value: Mapping[str, float], step: str | None = None) -> None:
        """Say how it is going, in numbers."""
        self.logger.info("metrics", extra={"metrics": dict(value), "step": step})

    def log_message(self, text: str) -> None:
        """Say something to whoever reads the log."""
        self.logger.info(text)


def _plugins_clients(access: "ClientAccess | None") -> tuple[Any, Any]:
    """Of a token that is the plugin's own; the agent's is not for plugin code."""
    if access is None or not access.token:
        return None, None
    from worker.platform import AgentClient, BackendClient

    client = BackendClient(access.host, access.token, tenant=access.tenant)
    if not access.agent_url:
        return client, None
    return client, AgentClient(access.agent_url, access.token, tenant=access.tenant)
