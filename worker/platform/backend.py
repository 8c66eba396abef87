"""The client of the platform's backend."""

import re
from collections.abc import Iterator, Mapping, Sequence

import httpx

from shared.messages import JsonObject
from worker.platform.backend_requests import (
    NUMBER,
    RELEASE,
    annotation_request,
    backend_headers,
    data_unit_request,
    plugin_run_request,
    read_request,
    reject_unknown_keys,
    task_request,
    without_none,
)
from worker.platform.client import BaseClient
from worker.platform.errors import NotFoundError
from worker.platform.redaction import register_secrets
from worker.platform.requests import Json, Request, encode_query, page_request, path_segment
from worker.platform.retries import RetryPolicy

_JOB_ID = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_JOB_FIELDS = frozenset({"status", "progress_record", "metrics_record", "console_logs", "result", "meta"})
# A run's filters cannot override the query keys of `sdk/tasks/` that the worker sets.
_RESERVED_TASK_FILTERS = frozenset({"fields", "project", "page_size", "page"})


class BackendClient(BaseClient):
    """The platform's backend; its calls and headers are those of platform-api.

    Every method raises `ValidationError` for an id that there cannot be, before anything is sent.
    """

    service = "backend"

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
        """Connect to nothing yet; mask the tokens in this process from now on.

        Args:
            base_url: `http(s)://host[:port][/path]`.
            access_token: The access token.
            tenant: The tenant, if there are several.
            agent_token: The token of the agent that calls, if one does.
            timeout: Seconds, as in `BaseClient`.
            transport: Replaces the network in tests.
            retries: How often a request that may be sent again is sent.

        Raises:
            ValueError: An argument is unusable; the message does not show its value.
        """
        headers = backend_headers(access_token, tenant, agent_token)
        super().__init__(base_url, timeout, headers=headers, transport=transport, retries=retries)

    def get_project(self, project: int | str) -> JsonObject:
        """Fetch a project.

        Args:
            project: Its id.

        Returns:
            The project; its `data_collection` is an id.

        Raises:
            ClientError: 404 for an unknown project.
        """
        return self._send_for_object(read_request(f"projects/{path_segment(project, 'project id', NUMBER)}/"))

    def get_data_collection(self, collection: int | str) -> JsonObject:
        """Fetch a data collection.

        Args:
            collection: Its id.

        Returns:
            The data collection, with its `file_specifications`.

        Raises:
            ClientError: 404 for an unknown data collection.
        """
        path = f"data_collections/{path_segment(collection, 'data collection id', NUMBER)}/"
        return self._send_for_object(read_request(path))

    def list_tasks(
        self,
        filters: Mapping[str, Json],
        project: int | str,
        page_size: int = 100,
        url: str | None = None,
    ) -> JsonObject:
        """Fetch one page of the ids of a project's tasks.

        Args:
            filters: The run's `task_filters`. They cannot override the other parameters of the query.
            project: The project's id.
            page_size: Tasks in a page.
            url: The `next` of the page before; None for the first page.

        Returns:
            `{"count", "next", "previous", "results"}`

        Raises:
            ClientError: The call failed.
            UntrustedLinkError: The `url` leads out of the base URL.
        """
        path_segment(project, "project id", NUMBER)
        query = {key: value for key, value in filters.items() if key not in _RESERVED_TASK_FILTERS}
        query |= {"fields": "id", "project": project, "page_size": page_size}
        first = Request("GET", "sdk/tasks/", encode_query(query), retryable=True, expect="list")
        return self._send_for_object(first if url is None else page_request(first, url, self._base))

    def get_task(self, task: int | str) -> JsonObject:
        """Fetch a task with its data and its data unit.

        Args:
            task: Its id.

        Returns:
            `{"id", "data", "data_unit"}`

        Raises:
            ClientError: 404 for an unknown task.
        """
        return self._send_for_object(task_request(task))

    def get_data_unit(self, data_unit: int | str) -> JsonObject:
        """Fetch a data unit with its files.

        Args:
            data_unit: Its id.

        Returns:
            The data unit, with its `files`.

        Raises:
            ClientError: 404 for an unknown data unit.
        """
        return self._send_for_object(data_unit_request(data_unit))

    def annotate_task_data(
        self, task: int | str, data: Mapping[str, Json], schema: str | None = None
    ) -> JsonObject:
        """Submit a task's annotation.

        Args:
            task: The task's id.
            data: The annotation.
            schema: "any" makes the backend accept any shape.

        Returns:
            The task.

        Raises:
            ClientError: The call failed.
        """
        return self._send_for_object(annotation_request(task, data, schema))

    def get_plugin_release(self, release: int | str) -> JsonObject:
        """Fetch a plugin release.

        Args:
            release: Its number, or `code@version`.

        Returns:
            `{"id", "version", "config"}`

        Raises:
            ClientError: 404 for an unknown release.
        """
        path = f"plugin_releases/{path_segment(release, 'plugin release', RELEASE)}/"
        return self._send_for_object(read_request(path))

    def run_plugin(self, code: str, data: Mapping[str, Json]) -> Json:
        """Run a plugin's action. The request is sent once.

        Args:
            code: The plugin's code.
            data: `agent`, `action`, `params` and what else platform-api allows.

        Returns:
            A deployment's job, or whatever JSON an inference responds with.

        Raises:
            ClientError: The call failed.
            ValidationError: The backend would reject a key; nothing was sent.
        """
        return self._send(plugin_run_request(code, data))

    def get_model(self, model: int | str) -> JsonObject:
        """Fetch a model.

        Args:
            model: Its id.

        Returns:
            The model; the URL of its `file` is presigned.

        Raises:
            ClientError: 404 for an unknown model.
        """
        return self._send_for_object(read_request(f"models/{path_segment(model, 'model id', NUMBER)}/"))

    def list_serve_applications(self, **query: Json) -> JsonObject:
        """Fetch all matching records of Serve applications.

        Args:
            **query: Filters: `plugin_code`, `job__agent`, `job`.

        Returns:
            `{"results": [...]}` of all pages.

        Raises:
            ClientError: The call failed.
        """
        return self._collect_pages(_serve_applications_request(query))

    def serve_application_pages(self, **query: Json) -> Iterator[JsonObject]:
        """Fetch matching records of Serve applications page by page, each when it is asked for.

        Args:
            **query: Filters, as of `list_serve_applications`, and `page`, the number of the first page.

        Yields:
            Pages as `{"count", "next", "previous", "results"}`.

        Raises:
            ClientError: A page cannot be fetched.
        """
        return self.pages(_serve_applications_request(query))

    def create_serve_application(
        self,
        *,
        job: int | str,
        status: str | None = None,
        data: Mapping[str, Json] | None = None,
    ) -> JsonObject:
        """Create a record of a Serve application. The request is sent once: two would make two records.

        Args:
            job: Id of the deployment's job.
            status: A status of platform-api.
            data: What else the record holds.

        Returns:
            The record, with its `id`.

        Raises:
            ClientError: The call failed.
        """
        body = without_none({"job": job, "status": status, "data": data})
        return self._send_for_object(Request("POST", "serve_applications/", json=body))

    def list_agents(self, **query: Json) -> JsonObject:
        """Fetch all matching agents; mask their tokens in this process from now on.

        Args:
            **query: Filters. Older backends ignore `id`.

        Returns:
            `{"results": [...]}` of all pages.

        Raises:
            ClientError: The call failed.
        """
        request = Request("GET", "agents/", encode_query(query), retryable=True, expect="list")
        agents = self._collect_pages(request)
        register_secrets(agent["token"] for agent in agents["results"] if isinstance(agent.get("token"), str))
        return agents

    def get_agent(self, agent: int | str) -> JsonObject:
        """Fetch one agent.

        Args:
            agent: Its id.

        Returns:
            `{"id", "name", "url", "token", "status"}`

        Raises:
            ClientError: The call failed.
            NotFoundError: There is no such agent.
        """
        # Older backends ignore the filter and respond with every agent.
        agents: list[JsonObject] = self.list_agents(id=agent)["results"]
        for each in agents:
            if str(each.get("id")) == str(agent):
                return each
        raise NotFoundError("404 Not Found: no such agent", 404, "no such agent")

    def get_job(self, job: int | str) -> JsonObject:
        """Fetch a job.

        Args:
            job: Its id.

        Returns:
            The job, with its `status` and `result`.

        Raises:
            ClientError: 404 for an unknown job.
        """
        return self._send_for_object(read_request(_job_path(job)))

    def update_job(self, job: int | str, **fields: Json) -> JsonObject:
        """Change a job.

        Args:
            job: Its id.
            **fields: `status`, `progress_record`, `metrics_record`, `console_logs`, `result`, `meta`.

        Returns:
            The job.

        Raises:
            ClientError: The call failed.
            ValidationError: The backend would reject a field; nothing was sent.
        """
        reject_unknown_keys(fields, _JOB_FIELDS)
        return self._send_for_object(Request("PATCH", _job_path(job), json=dict(fields), retryable=True))

    def create_logs(self, entries: Mapping[str, Json] | Sequence[Mapping[str, Json]]) -> None:
        """Write entries of users' logs. The request is sent once: users would see an entry twice.

        Args:
            entries: One entry or several: `{"event", "data", "datetime", "job", "step"?, "level"?}`.

        Raises:
            ClientError: The call failed.
        """
        body = dict(entries) if isinstance(entries, Mapping) else list(entries)
        self._send(Request("POST", "logs/", json=body, expect="none"))


def _serve_applications_request(query: Mapping[str, Json]) -> Request:
    return Request("GET", "serve_applications/", encode_query(query), retryable=True, expect="list")


def _job_path(job: int | str) -> str:
    return f"jobs/{path_segment(job, 'job id', _JOB_ID)}/"
