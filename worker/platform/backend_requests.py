"""Requests to the backend that its synchronous and its asynchronous client share."""

import re
from collections.abc import Mapping

from shared.messages import JsonObject
from worker.platform.errors import ValidationError
from worker.platform.redaction import register_secrets
from worker.platform.requests import Expect, Json, Request, encode_query, path_segment

NUMBER = re.compile(r"[0-9]{1,20}")
"""Ids of projects, tasks and so on."""

RELEASE = re.compile(r"[A-Za-z0-9_.@+-]{1,260}")
"""A plugin's code, or `code@version`."""

_PLUGIN_RUN_KEYS = frozenset({"agent", "action", "params", "version", "job_id", "language"})


def backend_headers(access_token: str, tenant: str | None, agent_token: str | None) -> dict[str, str]:
    """Make the headers that name the caller; mask the tokens in this process from now on.

    Args:
        access_token: The access token.
        tenant: The tenant, if there are several.
        agent_token: The token of the agent that calls, if one does.

    Returns:
        The headers (platform-api: "Backend").
    """
    register_secrets(token for token in (access_token, agent_token) if token)
    given = {"Synapse-Access-Token": access_token, "Synapse-Tenant": tenant, "SYNAPSE-Agent": agent_token}
    return {name: f"Token {value}" for name, value in given.items() if value}


def task_request(task: int | str) -> Request:
    """Make the request for a task with its data and its data unit.

    Args:
        task: The task's id.

    Returns:
        The request.

    Raises:
        ValidationError: There can be no such id.
    """
    query = {"fields": "id,data,data_unit", "expand": "data_unit"}
    return read_request(f"tasks/{path_segment(task, 'task id', NUMBER)}/", query)


def data_unit_request(data_unit: int | str) -> Request:
    """Make the request for a data unit with its files.

    Args:
        data_unit: The data unit's id.

    Returns:
        The request.

    Raises:
        ValidationError: There can be no such id.
    """
    return read_request(f"data_units/{path_segment(data_unit, 'data unit id', NUMBER)}/", {"expand": "files"})


def annotation_request(task: int | str, data: Mapping[str, Json], schema: str | None) -> Request:
    """Make the request that submits a task's annotation; writing the same data twice is harmless.

    Args:
        task: The task's id.
        data: The annotation.
        schema: "any" is sent to the backend, any other schema is its default.

    Returns:
        The request.

    Raises:
        ValidationError: There can be no such id.
    """
    return Request(
        "PUT",
        f"tasks/{path_segment(task, 'task id', NUMBER)}/annotate_task_data/",
        encode_query({"schema": "any"} if schema == "any" else {}),
        {"action": "submit", "data": data},
        retryable=True,
    )


def plugin_run_request(code: str, data: Mapping[str, Json]) -> Request:
    """Make the request that runs a plugin's action.

    It is never sent twice: that could make two deployments or two inferences.

    Args:
        code: The plugin's code.
        data: The keys of platform-api; those without a value are left out.

    Returns:
        The request. It expects an object (the job) of a deployment, any JSON of an inference.

    Raises:
        ValidationError: There can be no such code, or the backend would reject a key.
    """
    reject_unknown_keys(data, _PLUGIN_RUN_KEYS)
    expect: Expect = "object" if data.get("action") == "deployment" else "any"
    path = f"plugins/{path_segment(code, 'plugin code', RELEASE)}/run/"
    return Request("POST", path, json=without_none(data), expect=expect)


def read_request(path: str, query: Mapping[str, Json] | None = None) -> Request:
    """Make a request that reads one object.

    Args:
        path: Relative to the base URL, and quoted.
        query: The query parameters.

    Returns:
        The request.
    """
    return Request("GET", path, encode_query(query or {}), retryable=True)


def without_none(values: Mapping[str, Json]) -> JsonObject:
    """Leave out the keys without a value, because the backend rejects null for them.

    Args:
        values: A request's body.

    Returns:
        The keys whose value is not None.
    """
    return {key: value for key, value in values.items() if value is not None}


def reject_unknown_keys(values: Mapping[str, Json], known: frozenset[str]) -> None:
    """Check a body before anything is sent: the backend rejects unknown keys.

    Args:
        values: A request's body.
        known: The keys of platform-api.

    Raises:
        ValidationError: Another key is there.
    """
    unknown = sorted(set(values) - known)
    if unknown:
        detail = f"unknown keys {', '.join(unknown)}"
        raise ValidationError(f"400 Bad Request: {detail}", 400, detail)
