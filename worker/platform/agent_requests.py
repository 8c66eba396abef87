"""The agent's calls, one function each (the table of the platform's API)."""

import re
from collections.abc import Mapping
from typing import Any

from worker.platform.requests import Request, path_id, query_pairs

_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_APPLICATION = re.compile(r"[A-Za-z0-9_@.-]{1,100}")


def health() -> Request:
    """`GET health/`"""
    return Request("GET", "health/", repeatable=True, expect="none")


def get_job(job: str) -> Request:
    """`GET jobs/{id}/`: a Ray job."""
    return _get(f"jobs/{path_id(job, 'job id', _ID)}/")


def list_jobs() -> Request:
    """`GET jobs/`"""
    return _list("jobs/")


def get_job_logs(job: str) -> Request:
    """`GET jobs/{id}/logs/`: all of the log so far, as text."""
    return Request("GET", f"jobs/{path_id(job, 'job id', _ID)}/logs/", repeatable=True, expect="text")


def stop_job(job: str) -> Request:
    """`POST jobs/{id}/stop/`"""
    return Request("POST", f"jobs/{path_id(job, 'job id', _ID)}/stop/")


def get_node(node: str) -> Request:
    """`GET nodes/{id}/`"""
    return _get(f"nodes/{path_id(node, 'node id', _ID)}/")


def list_nodes() -> Request:
    """`GET nodes/`"""
    return _list("nodes/")


def get_task(task: str) -> Request:
    """`GET tasks/{id}/`: a Ray task."""
    return _get(f"tasks/{path_id(task, 'task id', _ID)}/")


def list_tasks() -> Request:
    """`GET tasks/`"""
    return _list("tasks/")


def get_serve_application(name: str) -> Request:
    """`GET serve_applications/{name}/`"""
    return _get(f"serve_applications/{path_id(name, 'application name', _APPLICATION)}/")


def list_serve_applications() -> Request:
    """`GET serve_applications/`"""
    return _list("serve_applications/")


def delete_serve_application(name: str) -> Request:
    """`DELETE serve_applications/{name}/`"""
    path = f"serve_applications/{path_id(name, 'application name', _APPLICATION)}/"
    return Request("DELETE", path, expect="none")


def check_feasibility(asked: Mapping[str, Any]) -> Request:
    """`POST resources/feasibility/`. Sent once: the gate's answer is wanted now or not at all."""
    return Request("POST", "resources/feasibility/", json=dict(asked))


def get_cluster_resources(use_cache: bool) -> Request:
    """`GET resources/cluster/`"""
    return Request("GET", "resources/cluster/", query_pairs({"use_cache": use_cache}), repeatable=True)


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
    return Request("GET", path, repeatable=True)


def _list(path: str) -> Request:
    return Request("GET", path, repeatable=True, expect="list")
