"""The backend's calls, one function each (the table of the platform's API)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from worker.platform.errors import ValidationError
from worker.platform.requests import Request, path_id, query_pairs

_NUMBER = re.compile(r"[0-9]{1,20}")
_JOB = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_RELEASE = re.compile(r"[A-Za-z0-9_.@+-]{1,260}")

RUN_KEYS = frozenset({"agent", "action", "params", "version", "job_id", "language"})
JOB_FIELDS = frozenset(
    {"status", "progress_record", "metrics_record", "console_logs", "result", "meta"},
)
OUR_TASK_KEYS = frozenset({"fields", "project", "page_size", "page"})
"""Query keys of `sdk/tasks/` that the worker decides; a run's filters cannot."""


def get_project(project: int | str) -> Request:
    """`GET projects/{id}/`"""
    return _get(f"projects/{path_id(project, 'project id', _NUMBER)}/")


def get_data_collection(collection: int | str) -> Request:
    """`GET data_collections/{id}/`"""
    return _get(f"data_collections/{path_id(collection, 'data collection id', _NUMBER)}/")


def list_tasks(filters: Mapping[str, Any], project: int | str, page_size: int) -> Request:
    """`GET sdk/tasks/`: the first page of the ids of the tasks that match."""
    path_id(project, "project id", _NUMBER)
    chosen = {key: value for key, value in filters.items() if key not in OUR_TASK_KEYS}
    ours = {"fields": "id", "project": project, "page_size": page_size}
    return Request("GET", "sdk/tasks/", query_pairs({**chosen, **ours}), repeatable=True, expect="list")


def get_task(task: int | str) -> Request:
    """`GET tasks/{id}/` with its data and its data unit."""
    query = {"fields": "id,data,data_unit", "expand": "data_unit"}
    return _get(f"tasks/{path_id(task, 'task id', _NUMBER)}/", query)


def get_data_unit(data_unit: int | str) -> Request:
    """`GET data_units/{id}/` with its files."""
    return _get(f"data_units/{path_id(data_unit, 'data unit id', _NUMBER)}/", {"expand": "files"})


def annotate_task_data(task: int | str, data: Mapping[str, Any], schema: str | None) -> Request:
    """`PUT tasks/{id}/annotate_task_data/`. Writing the same data twice is harmless."""
    return Request(
        "PUT",
        f"tasks/{path_id(task, 'task id', _NUMBER)}/annotate_task_data/",
        query_pairs({"schema": "any"} if schema == "any" else {}),
        {"action": "submit", "data": data},
        repeatable=True,
    )


def get_plugin_release(release: int | str) -> Request:
    """`GET plugin_releases/{id}/` by number or by `code@version`."""
    return _get(f"plugin_releases/{path_id(release, 'plugin release', _RELEASE)}/")


def run_plugin(code: str, data: Mapping[str, Any]) -> Request:
    """`POST plugins/{code}/run/`. Never repeated: two deployments or inferences may come of two calls."""
    _refuse_unknown(data, RUN_KEYS)
    # A deployment's answer is a job, an inference's is the pre-processor's own.
    expect: Any = "object" if data.get("action") == "deployment" else "any"
    path = f"plugins/{path_id(code, 'plugin code', _RELEASE)}/run/"
    return Request("POST", path, json=_given(data), expect=expect)


def get_model(model: int | str) -> Request:
    """`GET models/{id}/`"""
    return _get(f"models/{path_id(model, 'model id', _NUMBER)}/")


def list_serve_applications(query: Mapping[str, Any]) -> Request:
    """`GET serve_applications/`"""
    return Request("GET", "serve_applications/", query_pairs(query), repeatable=True, expect="list")


def create_serve_application(job: int | str, status: str | None, data: Mapping[str, Any] | None) -> Request:
    """`POST serve_applications/`. Never repeated: two posts make two records."""
    return Request("POST", "serve_applications/", json=_given({"job": job, "status": status, "data": data}))


def list_agents(query: Mapping[str, Any]) -> Request:
    """`GET agents/`"""
    return Request("GET", "agents/", query_pairs(query), repeatable=True, expect="list")


def get_job(job: int | str) -> Request:
    """`GET jobs/{id}/`"""
    return _get(f"jobs/{path_id(job, 'job id', _JOB)}/")


def update_job(job: int | str, fields: Mapping[str, Any]) -> Request:
    """`PATCH jobs/{id}/` with the fields that the backend knows."""
    _refuse_unknown(fields, JOB_FIELDS)
    return Request("PATCH", f"jobs/{path_id(job, 'job id', _JOB)}/", json=dict(fields), repeatable=True)


def create_logs(entries: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Request:
    """`POST logs/`, one entry or a list. Never repeated: users would read a line twice."""
    body = dict(entries) if isinstance(entries, Mapping) else list(entries)
    return Request("POST", "logs/", json=body, expect="none")


def _get(path: str, query: Mapping[str, Any] | None = None) -> Request:
    return Request("GET", path, query_pairs(query or {}), repeatable=True)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    # The backend refuses null where it knows a key only with a value.
    return {key: value for key, value in values.items() if value is not None}


def _refuse_unknown(values: Mapping[str, Any], known: frozenset[str]) -> None:
    unknown = sorted(set(values) - known)
    if unknown:
        detail = f"unknown keys {', '.join(unknown)}"
        raise ValidationError(f"400 Bad Request: {detail}", 400, detail)
