"""The client of the platform's backend."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from worker.platform import backend_requests as calls
from worker.platform.base import BaseClient
from worker.platform.errors import NotFoundError
from worker.platform.paging import next_page
from worker.platform.redaction import register_secrets
from worker.platform.retries import RetryPolicy


def backend_headers(access_token: str, tenant: str | None, agent_token: str | None) -> dict[str, str]:
    """Who calls. The tokens are masked in this process from now on."""
    register_secrets(token for token in (access_token, agent_token) if token)
    headers = {"Synapse-Access-Token": f"Token {access_token}"}
    if tenant:
        headers["Synapse-Tenant"] = f"Token {tenant}"
    if agent_token:
        headers["SYNAPSE-Agent"] = f"Token {agent_token}"
    return headers


class BackendClient(BaseClient):
    """The backend at `base_url`, as the owner of `access_token`."""

    def __init__(
        self,
        base_url: str,
        access_token: str,
        *,
        tenant: str | None = None,
        agent_token: str | None = None,
        timeout: Mapping[str, float] | None = None,
        transport: httpx.BaseTransport | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        headers = backend_headers(access_token, tenant, agent_token)
        super().__init__(base_url, timeout, headers=headers, transport=transport, retries=retries)

    def get_project(self, project: int | str) -> dict[str, Any]:
        """A project; its `data_collection` is an id."""
        return self._object(calls.get_project(project))

    def get_data_collection(self, collection: int | str) -> dict[str, Any]:
        """A data collection with its `file_specifications`."""
        return self._object(calls.get_data_collection(collection))

    def list_tasks(
        self,
        filters: Mapping[str, Any],
        project: int | str,
        page_size: int = 100,
        url: str | None = None,
    ) -> dict[str, Any]:
        """One page of a project's task ids: `{"count", "next", "previous", "results"}`.

        `url` is the `next` of the page before; one that leads off the backend is refused.
        """
        request = calls.list_tasks(filters, project, page_size)
        return self._object(request if url is None else next_page(request, url, self._base))

    def get_task(self, task: int | str) -> dict[str, Any]:
        """A task with its data and its data unit."""
        return self._object(calls.get_task(task))

    def get_data_unit(self, data_unit: int | str) -> dict[str, Any]:
        """A data unit with its files."""
        return self._object(calls.get_data_unit(data_unit))

    def annotate_task_data(
        self, task: int | str, data: Mapping[str, Any], schema: str | None = None
    ) -> dict[str, Any]:
        """Submit a task's annotation; `schema="any"` has the backend take any shape."""
        return self._object(calls.annotate_task_data(task, data, schema))

    def get_plugin_release(self, release: int | str) -> dict[str, Any]:
        """A plugin release by number or `code@version`."""
        return self._object(calls.get_plugin_release(release))

    def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any:
        """Run a plugin's action: a deployment answers with its job, an inference with any JSON. Sent once."""
        return self._send(calls.run_plugin(code, data))

    def get_model(self, model: int | str) -> dict[str, Any]:
        """A model; the address of its `file` is signed."""
        return self._object(calls.get_model(model))

    def list_serve_applications(self, **query: Any) -> dict[str, Any]:
        """All application records that match (`plugin_code`, `job__agent`, `job`), of all pages."""
        return self._all(calls.list_serve_applications(query))

    def create_serve_application(
        self,
        *,
        job: int | str,
        status: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Register an application. Sent once, as two posts make two records."""
        return self._object(calls.create_serve_application(job, status, data))

    def list_agents(self, **query: Any) -> dict[str, Any]:
        """All agents, of all pages. Their tokens are masked in this process from now on."""
        agents = self._all(calls.list_agents(query))
        register_secrets(agent["token"] for agent in agents["results"] if isinstance(agent.get("token"), str))
        return agents

    def get_agent(self, agent: int | str) -> dict[str, Any]:
        """One agent, or `NotFoundError`."""
        # Older backends ignore the filter and answer with every agent.
        agents: list[dict[str, Any]] = self.list_agents(id=agent)["results"]
        for each in agents:
            if str(each.get("id")) == str(agent):
                return each
        raise NotFoundError("404 Not Found: no such agent", 404, "no such agent")

    def get_job(self, job: int | str) -> dict[str, Any]:
        """A job with its `status` and `result`."""
        return self._object(calls.get_job(job))

    def update_job(self, job: int | str, **fields: Any) -> dict[str, Any]:
        """Change a job: `status`, `progress_record`, `metrics_record`, `console_logs`, `result`, `meta`."""
        return self._object(calls.update_job(job, fields))

    def create_logs(self, entries: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Write one or several entries of users' logs. Sent once."""
        self._send(calls.create_logs(entries))
