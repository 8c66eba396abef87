"""Ray's jobs, called in the driver process through the dashboard, in a task on the head unless it runs there.

The dashboard often listens on the head's loopback address alone.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from shared.messages import JsonObject

HEAD_RESOURCE: Final = "node:__internal_head__"
PATH: Final = "/api/jobs/"
LOG_PATH: Final = "/logs/job-driver-{}.log"
"""On the agent of the node that has run the job, which answers with the range that is asked for."""
OK, PARTIAL, NOT_FOUND, EMPTY_RANGE = 200, 206, 404, 416
UNDO_TIMEOUT_SECONDS: Final = 30.0
MAX_MESSAGE_CHARS: Final = 50_000
"""Of Ray's message about a job, at the end of which stands what went wrong."""
MAX_ERROR_CHARS: Final = 2_000


def submit_job(submission: JsonObject, seconds: float) -> JsonObject:
    """Submit a job; returns its id with `status` and `text` of Ray's answer, whatever that is.

    The job's programs are those beside the Python of the cluster: Ray starts a job by a shell, whose `python`
    may be any. A virtual environment that Ray makes for the job goes before that.
    """
    status, text = _call(seconds, "POST", PATH, submission, in_clusters_python=True)
    return {"id": submission["submission_id"], "status": status, "text": text[-MAX_ERROR_CHARS:]}


def undo_submission(answer: JsonObject) -> None:
    """Stop a job that was submitted for a run that has ended meanwhile."""
    stop_job(answer["id"], UNDO_TIMEOUT_SECONDS)


def job_state(id: str, seconds: float) -> JsonObject | None:
    """The job's `status`, and Ray's `message` about it; None when the cluster does not know it."""
    status, text = _call(seconds, "GET", _path(id))
    if status == NOT_FOUND:
        return None
    job = _object(status, text)
    return {"status": job.get("status"), "message": str(job.get("message") or "")[-MAX_MESSAGE_CHARS:]}


def stop_job(id: str, seconds: float) -> bool:
    """Ask Ray to stop the job: SIGTERM, and SIGKILL three seconds later. False when it has ended."""
    status, text = _call(seconds, "POST", f"{_path(id)}/stop", {})
    return status != NOT_FOUND and bool(_object(status, text).get("stopped"))


def end_of_log(id: str, max_bytes: int, seconds: float) -> str:
    """The last bytes of the job's log, read where it lies, by the agent of the node that has run the job.

    Ray's own answer is the whole log as one JSON text: of several GB it takes minutes and the node's memory.
    A job that never began has no log.
    """
    status, text = _call(seconds, "GET", _path(id))
    address = None if status == NOT_FOUND else _object(status, text).get("driver_agent_http_address")
    if not address:
        return ""
    status, text = _call(
        seconds, "GET", f"{address}{LOG_PATH.format(quote(id, safe=''))}", max_bytes=max_bytes
    )
    if status not in (OK, PARTIAL, NOT_FOUND, EMPTY_RANGE):
        raise OSError(f"the agent of the job's node answered {status}: {text[-MAX_ERROR_CHARS:]}")
    return text if status in (OK, PARTIAL) else ""


def _path(id: str) -> str:
    return f"{PATH}{quote(id, safe='')}"


def _object(status: int, text: str) -> JsonObject:
    if status != OK:
        raise OSError(f"Ray's dashboard answered {status}: {text[-MAX_ERROR_CHARS:]}")
    answer: JsonObject = json.loads(text)
    return answer


def _call(
    seconds: float,
    method: str,
    path: str,
    body: JsonObject | None = None,
    *,
    max_bytes: int = 0,
    in_clusters_python: bool = False,
) -> tuple[int, str]:
    """Status and text of the dashboard's answer, or of that of a node's agent where `path` is a whole URL.

    `max_bytes`: no more than the end of the answer's content is asked for, or kept.
    `in_clusters_python`: in a task in any case, whose Python is the cluster's and not this worker's.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    arguments = seconds, method, path, body, max_bytes, in_clusters_python
    alive = [node for node in ray.nodes() if node["Alive"]]
    head = next((node["NodeID"] for node in alive if HEAD_RESOURCE in node["Resources"]), None)
    is_client = ray.util.client.ray.is_connected()
    if not in_clusters_python and not is_client and head == ray.get_runtime_context().get_node_id():
        return tuple(_dashboard_call()(*arguments))
    call = _remote_dashboard_call()
    if head is not None:
        call = call.options(scheduling_strategy=NodeAffinitySchedulingStrategy(head, soft=False))
    return tuple(ray.get(call.remote(*arguments), timeout=seconds))


@lru_cache(maxsize=1)
def _remote_dashboard_call() -> Any:
    """Made once a process: the cluster keeps each function that is made."""
    import ray

    return ray.remote(num_cpus=0)(_dashboard_call())


@lru_cache(maxsize=1)
def _dashboard_call() -> Callable[..., list[Any]]:
    """A nested function, which travels by value: an older version on the nodes need not know it."""

    def call(seconds: float, method: str, path: str, body: Any, max_bytes: int, adds_path: bool) -> list[Any]:
        import json
        import os
        import sys
        from urllib.error import HTTPError
        from urllib.request import ProxyHandler, Request, build_opener

        from ray._private import ray_constants
        from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
        from ray.experimental.internal_kv import _internal_kv_get

        address = _internal_kv_get(
            ray_constants.DASHBOARD_ADDRESS, namespace=ray_constants.KV_NAMESPACE_DASHBOARD
        )
        if not address:
            raise ConnectionError("the Ray cluster has no dashboard, which its jobs need")
        if adds_path:
            environment = body["runtime_env"]
            folder = os.path.dirname(sys.executable)  # noqa: PTH120 - a text for a shell
            variables = {"PATH": f"{folder}:${{PATH}}", **environment.get("env_vars", {})}
            body = {**body, "runtime_env": {**environment, "env_vars": variables}}
        headers = {"Content-Type": "application/json", **get_auth_headers_if_auth_enabled({})}
        content = None if body is None else json.dumps(body).encode()
        if max_bytes:
            headers["Range"] = f"bytes=-{max_bytes}"
        url = path if path.startswith("http") else f"http://{address.decode()}{path}"
        request = Request(url, content, headers, method=method)  # noqa: S310 - of the cluster alone
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=seconds) as answer:
                kept = b""
                while chunk := answer.read(1024 * 1024):
                    kept = (kept + chunk)[-max_bytes:]
                return [answer.status, kept.decode(errors="replace")]
        except HTTPError as error:
            return [error.code, error.read().decode(errors="replace")]

    return call
