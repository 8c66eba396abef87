"""The backend's calls, one function each (the table of the platform's API)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from worker.platform.client import BaseClient
from worker.platform.errors import NotFoundError, ValidationError
from worker.platform.redaction import register_secrets
from worker.platform.requests import Request, encode_query, page_request, path_segment
from worker.platform.responses import RetryPolicy

_NUMBER = re.compile(r"[0-9]{1,20}")
_JOB = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_RELEASE = re.compile(r"[A-Za-z0-9_.@+-]{1,260}")

PLUGIN_RUN_KEYS = frozenset({"agent", "action", "params", "version", "job_id", "language"})
JOB_FIELDS = frozenset(
    {"status", "progress_record", "metrics_record", "console_logs", "result", "meta"},
)
RESERVED_TASK_FILTERS = frozenset({"fields", "project", "page_size", "page"})
"""Query keys of `sdk/tasks/` that the worker decides; a run's filters cannot."""


def get_project(project: int | str) -> Request:
    """`GET projects/{id}/`"""
    return _get(f"projects/{path_segment(project, 'project id', _NUMBER)}/")


def get_data_collection(collection: int | str) -> Request:
    """`GET data_collections/{id}/`"""
    return _get(f"data_collections/{path_segment(collection, 'data collection id', _NUMBER)}/")


def list_tasks(filters: Mapping[str, Any], project: int | str, page_size: int) -> Request:
    """`GET sdk/tasks/`: the first page of the ids of the tasks that match."""
    path_segment(project, "project id", _NUMBER)
    chosen = {key: value for key, value in filters.items() if key not in RESERVED_TASK_FILTERS}
    ours = {"fields": "id", "project": project, "page_size": page_size}
    return Request("GET", "sdk/tasks/", encode_query({**chosen, **ours}), retryable=True, expect="list")


def task_request(task: int | str) -> Request:
    """`GET tasks/{id}/` with its data and its data unit."""
    query = {"fields": "id,data,data_unit", "expand": "data_unit"}
    return _get(f"tasks/{path_segment(task, 'task id', _NUMBER)}/", query)


def data_unit_request(data_unit: int | str) -> Request:
    """`GET data_units/{id}/` with its files."""
    return _get(f"data_units/{path_segment(data_unit, 'data unit id', _NUMBER)}/", {"expand": "files"})


def annotation_request(task: int | str, data: Mapping[str, Any], schema: str | None) -> Request:
    """`PUT tasks/{id}/annotate_task_data/`. Writing the same data twice is harmless."""
    return Request(
        "PUT",
        f"tasks/{path_segment(task, 'task id', _NUMBER)}/annotate_task_data/",
        encode_query({"schema": "any"} if schema == "any" else {}),
        {"action": "submit", "data": data},
        retryable=True,
    )


def get_plugin_release(release: int | str) -> Request:
    """`GET plugin_releases/{id}/` by number or by `code@version`."""
    return _get(f"plugin_releases/{path_segment(release, 'plugin release', _RELEASE)}/")


def plugin_run_request(code: str, data: Mapping[str, Any]) -> Request:
    """`POST plugins/{code}/run/`. Never repeated: two deployments or inferences may come of two calls."""
    _reject_unknown(data, PLUGIN_RUN_KEYS)
    # A deployment's answer is a job, an inference's is the pre-processor's own.
    expect: Any = "object" if data.get("action") == "deployment" else "any"
    path = f"plugins/{path_segment(code, 'plugin code', _RELEASE)}/run/"
    return Request("POST", path, json=_without_none(data), expect=expect)


def get_model(model: int | str) -> Request:
    """`GET models/{id}/`"""
    return _get(f"models/{path_segment(model, 'model id', _NUMBER)}/")


def list_serve_applications(query: Mapping[str, Any]) -> Request:
    """`GET serve_applications/`"""
    return Request("GET", "serve_applications/", encode_query(query), retryable=True, expect="list")


def create_serve_application(job: int | str, status: str | None, data: Mapping[str, Any] | None) -> Request:
    """`POST serve_applications/`. Never repeated: two posts make two records."""
    return Request(
        "POST", "serve_applications/", json=_without_none({"job": job, "status": status, "data": data})
    )


def list_agents(query: Mapping[str, Any]) -> Request:
    """`GET agents/`"""
    return Request("GET", "agents/", encode_query(query), retryable=True, expect="list")


def get_job(job: int | str) -> Request:
    """`GET jobs/{id}/`"""
    return _get(f"jobs/{path_segment(job, 'job id', _JOB)}/")


def update_job(job: int | str, fields: Mapping[str, Any]) -> Request:
    """`PATCH jobs/{id}/` with the fields that the backend knows."""
    _reject_unknown(fields, JOB_FIELDS)
    return Request("PATCH", f"jobs/{path_segment(job, 'job id', _JOB)}/", json=dict(fields), retryable=True)


def create_logs(entries: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Request:
    """`POST logs/`, one entry or a list. Never repeated: users would read a line twice."""
    body = dict(entries) if isinstance(entries, Mapping) else list(entries)
    return Request("POST", "logs/", json=body, expect="none")


def _get(path: str, query: Mapping[str, Any] | None = None) -> Request:
    return Request("GET", path, encode_query(query or {}), retryable=True)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    # The backend refuses null where it knows a key only with a value.
    return {key: value for key, value in values.items() if value is not None}


def _reject_unknown(values: Mapping[str, Any], known: frozenset[str]) -> None:
    unknown = sorted(set(values) - known)
    if unknown:
        detail = f"unknown keys {', '.join(unknown)}"
        raise ValidationError(f"400 Bad Request: {detail}", 400, detail)


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
        return self._send_for_object(get_project(project))

    def get_data_collection(self, collection: int | str) -> dict[str, Any]:
        """A data collection with its `file_specifications`."""
        return self._send_for_object(get_data_collection(collection))

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
        request = list_tasks(filters, project, page_size)
        return self._send_for_object(request if url is None else page_request(request, url, self._base))

    def get_task(self, task: int | str) -> dict[str, Any]:
        """A task with its data and its data unit."""
        return self._send_for_object(task_request(task))

    def get_data_unit(self, data_unit: int | str) -> dict[str, Any]:
        """A data unit with its files."""
        return self._send_for_object(data_unit_request(data_unit))

    def annotate_task_data(
        self, task: int | str, data: Mapping[str, Any], schema: str | None = None
    ) -> dict[str, Any]:
        """Submit a task's annotation; `schema="any"` has the backend take any shape."""
        return self._send_for_object(annotation_request(task, data, schema))

    def get_plugin_release(self, release: int | str) -> dict[str, Any]:
        """A plugin release by number or `code@version`."""
        return self._send_for_object(get_plugin_release(release))

    def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any:
        """Run a plugin's action: a deployment answers with its job, an inference with any JSON. Sent once."""
        return self._send(plugin_run_request(code, data))

    def get_model(self, model: int | str) -> dict[str, Any]:
        """A model; the address of its `file` is signed."""
        return self._send_for_object(get_model(model))

    def list_serve_applications(self, **query: Any) -> dict[str, Any]:
        """All application records that match (`plugin_code`, `job__agent`, `job`), of all pages."""
        return self._collect_pages(list_serve_applications(query))

    def create_serve_application(
        self,
        *,
        job: int | str,
        status: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Register an application. Sent once, as two posts make two records."""
        return self._send_for_object(create_serve_application(job, status, data))

    def list_agents(self, **query: Any) -> dict[str, Any]:
        """All agents, of all pages. Their tokens are masked in this process from now on."""
        agents = self._collect_pages(list_agents(query))
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
        return self._send_for_object(get_job(job))

    def update_job(self, job: int | str, **fields: Any) -> dict[str, Any]:
        """Change a job: `status`, `progress_record`, `metrics_record`, `console_logs`, `result`, `meta`."""
        return self._send_for_object(update_job(job, fields))

    def create_logs(self, entries: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Write one or several entries of users' logs. Sent once."""
        self._send(create_logs(entries))
