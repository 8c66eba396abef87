"""The agent's calls, one function each (the table of the platform's API)."""

import re
from collections.abc import Mapping
from typing import Any

import httpx

from worker.platform.client import BaseClient
from worker.platform.errors import MalformedResponseError
from worker.platform.ray_client import RayClientMixin
from worker.platform.redaction import register_secrets
from worker.platform.requests import Request, encode_query, path_segment
from worker.platform.responses import RetryPolicy
from worker.platform.streams import StreamLimits

_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_APPLICATION = re.compile(r"[A-Za-z0-9_@.-]{1,100}")


def health() -> Request:
    """`GET health/`"""
    return Request("GET", "health/", retryable=True, expect="none")


def get_job(job: str) -> Request:
    """`GET jobs/{id}/`: a Ray job."""
    return _get(f"jobs/{path_segment(job, 'job id', _ID)}/")


def list_jobs() -> Request:
    """`GET jobs/`"""
    return _list("jobs/")


def get_job_logs(job: str) -> Request:
    """`GET jobs/{id}/logs/`: all of the log so far, as text."""
    return Request("GET", f"jobs/{path_segment(job, 'job id', _ID)}/logs/", retryable=True, expect="text")


def stop_job(job: str) -> Request:
    """`POST jobs/{id}/stop/`"""
    return Request("POST", f"jobs/{path_segment(job, 'job id', _ID)}/stop/")


def get_node(node: str) -> Request:
    """`GET nodes/{id}/`"""
    return _get(f"nodes/{path_segment(node, 'node id', _ID)}/")


def list_nodes() -> Request:
    """`GET nodes/`"""
    return _list("nodes/")


def get_task(task: str) -> Request:
    """`GET tasks/{id}/`: a Ray task."""
    return _get(f"tasks/{path_segment(task, 'task id', _ID)}/")


def list_tasks() -> Request:
    """`GET tasks/`"""
    return _list("tasks/")


def get_serve_application(name: str) -> Request:
    """`GET serve_applications/{name}/`"""
    return _get(f"serve_applications/{path_segment(name, 'application name', _APPLICATION)}/")


def list_serve_applications() -> Request:
    """`GET serve_applications/`"""
    return _list("serve_applications/")


def delete_serve_application(name: str) -> Request:
    """`DELETE serve_applications/{name}/`"""
    path = f"serve_applications/{path_segment(name, 'application name', _APPLICATION)}/"
    return Request("DELETE", path, expect="none")


def check_feasibility(asked: Mapping[str, Any]) -> Request:
    """`POST resources/feasibility/`. Sent once: the gate's answer is wanted now or not at all."""
    return Request("POST", "resources/feasibility/", json=dict(asked))


def get_cluster_resources(use_cache: bool) -> Request:
    """`GET resources/cluster/`"""
    return Request("GET", "resources/cluster/", encode_query({"use_cache": use_cache}), retryable=True)


def get_policy() -> Request:
    """`GET resources/policy/`"""
    return _get("resources/policy/")


def update_policy(limits: Mapping[str, Any]) -> Request:
    """`PATCH resources/policy/`"""
    return Request("PATCH", "resources/policy/", json=dict(limits))


def gpu_status() -> Request:
    """`GET gpu_status/`"""
    return _get("gpu_status/")


def _get(path: str) -> Request:
    return Request("GET", path, retryable=True)


def _list(path: str) -> Request:
    return Request("GET", path, retryable=True, expect="list")


class AgentClient(RayClientMixin, BaseClient):
    """The agent at `base_url`, as the owner of `agent_token`, on behalf of a user where one is named."""

    def __init__(
        self,
        base_url: str,
        agent_token: str,
        *,
        user_token: str | None = None,
        tenant: str | None = None,
        timeout: Mapping[str, float] | None = None,
        transport: httpx.BaseTransport | None = None,
        retries: RetryPolicy | None = None,
        stream_limits: StreamLimits | None = None,
    ) -> None:
        register_secrets(token for token in (agent_token, user_token) if token)
        headers = {"Authorization": agent_token}
        if user_token:
            headers["SYNAPSE-User"] = f"Token {user_token}"
        if tenant:
            headers["SYNAPSE-Tenant"] = f"Token {tenant}"
        super().__init__(
            base_url,
            timeout,
            headers=headers,
            transport=transport,
            retries=retries,
            stream_limits=stream_limits,
        )

    def health(self) -> None:
        """Return when the agent is well, raise when it is not."""
        self._send(health())

    def check_feasibility(
        self,
        kind: str,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        memory_bytes: int | None = None,
        replicas: int = 1,
        metadata: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Ask once whether the cluster has room: `{"allowed": bool, "reasons": [...]}` and more."""
        asked = {
            "kind": kind,
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "memory_bytes": memory_bytes,
            "replicas": replicas,
            "metadata": dict(metadata or {}),
        }
        verdict: dict[str, Any] = {"reasons": [], **self._send_for_object(check_feasibility(asked))}
        # Anything but a real yes or no must not open the gate, nor close it with a wrong reason.
        if not isinstance(verdict.get("allowed"), bool) or not isinstance(verdict["reasons"], list):
            raise MalformedResponseError("malformed answer: not a verdict on feasibility")
        return verdict

    def get_cluster_resources(self, use_cache: bool = True) -> dict[str, Any]:
        """What the cluster has and what of it is free."""
        return self._send_for_object(get_cluster_resources(use_cache))

    def get_policy(self) -> dict[str, Any]:
        """The limits that the agent holds deployments to."""
        return self._send_for_object(get_policy())

    def update_policy(self, **limits: Any) -> dict[str, Any]:
        """Change limits such as `max_concurrent_serve_replicas`."""
        return self._send_for_object(update_policy(limits))

    def gpu_status(self) -> dict[str, Any]:
        """GPU totals of the cluster."""
        return self._send_for_object(gpu_status())
