"""The state of an application as Ray Serve reports it, and what it means."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from shared.messages import JsonObject
from shared.statuses import is_failed_status
from worker.platform import clean

DIGEST_VARIABLE = "SYNAPSE_DEPLOYMENT_DIGEST"
"""A variable in a deployment's environment, by which a running application is compared with a plan."""
_FORCED = ":forced:"
"""Stands between the digest of the plan and what is of the run alone that was forced."""
MAX_LINES = 12
"""Of a reason; the last lines say what went wrong."""
MAX_CHARS = 2_000
MAX_READ_LINES = 1_000
MAX_READ_CHARS = 2 * MAX_CHARS
"""An author's error may be megabytes long. More of each line is read than shown, so that a secret across the
end of the shown part is recognised."""

# Each expression takes time linear in its text, because a match can start only once in a word or a gap.
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PACKAGE = re.compile(r"/_ray_pkg_[0-9a-f]+/")
_FOLDERS = re.compile(r"(?<!\S)([^\s/]*)/\S*/(?:_ray_pkg_[0-9a-f]+|site-packages)/")
_WORKER = re.compile(r"(?<!\s)\s*+\(?(?:pid|ip|actor_id|repr)=[^,)\s]+[,)]?")
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>\S+)')
_LIBRARY_FILE = re.compile(
    r"(^|/)(site-packages/)?(ray|starlette|fastapi|uvicorn|asyncio|concurrent)/|^<|/lib/python"
)


def load_serve() -> None:
    """Import Serve; in the driver process other threads may be importing it, too."""
    # Not above, because the processes of plugin code have no driver.
    from worker.plugins.ray_driver import operations

    operations.load_serve()


def serve_application_state(name: str) -> JsonObject:
    """Ask Serve for the state of an application.

    Args:
        name: The application's name.

    Returns:
        Its `status` and `message`, and those of its `deployments`; empty when Serve does not know it.
    """
    load_serve()
    from ray import serve

    forget_lost_controller()
    found = serve.status().applications.get(name)
    if found is None:
        return {}
    return {
        "status": _value(found.status),
        "message": found.message,
        "deployments": {
            key: {
                "status": _value(item.status),
                "trigger": _value(item.status_trigger),
                "message": item.message,
            }
            for key, item in found.deployments.items()
        },
    }


def serve_details() -> dict[str, JsonObject]:
    """Ask Serve for all applications with their deployments' configuration.

    The dashboard answers the same to `GET /api/serve/applications/`, but a Ray task has no address of it.

    Returns:
        The details by application name; empty when Serve does not run.
    """
    load_serve()
    from ray.serve.context import _get_global_client

    forget_lost_controller()
    client = _get_global_client(raise_if_no_controller_running=False)
    return dict(client.get_serve_details()["applications"]) if client is not None else {}


def live_applications() -> dict[str, JsonObject] | None:
    """Ask Serve for all applications, as far as it knows them by now.

    Returns:
        As `serve_details`. None when Serve does not run, and when it shows no application while its proxies
        are not healthy: then it may be starting, and has not shown yet what it will run.
    """
    load_serve()
    from ray.serve.context import _get_global_client

    forget_lost_controller()
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    details = client.get_serve_details()
    proxies = [_value(proxy["status"]) for proxy in (details.get("proxies") or {}).values()]
    is_up = bool(proxies) and all(status == "HEALTHY" for status in proxies)
    return dict(details["applications"]) if details["applications"] or is_up else None


def forget_lost_controller() -> None:
    """Drop Serve's cached handle of its controller when that does not answer.

    After a `serve shutdown` and a new start, Serve would ask the old controller until the process ends.
    """
    load_serve()
    from ray.serve.context import _check_cached_client_alive

    _check_cached_client_alive()


def deployment_digest(deployment: Mapping[str, Any]) -> str | None:
    """Read the digest that `submit` has put into a deployment's environment.

    Args:
        deployment: A deployment's part of `serve_details`.

    Returns:
        The digest of the plan that was submitted; None for a deployment that this project did not submit.
    """
    config = deployment.get("deployment_config") or {}
    environment = (config.get("ray_actor_options") or {}).get("runtime_env") or {}
    digest = (environment.get("env_vars") or {}).get(DIGEST_VARIABLE)
    return str(digest) if digest else None


def forced_digest(digest: str, job: str) -> str:
    """Make the digest of an identical application that a run submits once more.

    Args:
        digest: Of the run's plan.
        job: The run's job. For each delivery of its messages the digest is the same.

    Returns:
        What no other run's application has, and `is_content_of` the plan.
    """
    return f"{digest}{_FORCED}{hashlib.sha256(job.encode()).hexdigest()[:16]}"


def is_content_of(shown: str | None, digest: str) -> bool:
    """Say whether an application was submitted for a plan, be it by a run that was forced.

    Args:
        shown: The digest that it shows.
        digest: Of the plan. That of a forced run is met by its own submission alone.

    Returns:
        Whether there is nothing to submit.
    """
    return shown is not None and (shown == digest or shown.startswith(digest + _FORCED))


def route_in_force(application: Mapping[str, Any] | None) -> str | None:
    """Read the route of an application that is there, which an update must keep.

    Args:
        application: An application's part of `serve_details`; None when Serve does not know it.

    Returns:
        Its route prefix; None when it has none, or is being deleted.
    """
    if application is None or application.get("status") == "DELETING":
        return None
    return application.get("route_prefix") or None


def interpret_serve_status(state: Mapping[str, Any] | None) -> tuple[str, str | None, str]:
    """Interpret the state of an application (seeds: the classification of an application's status).

    Args:
        state: An application's part of `serve_details`, or a value of `serve_application_state`.

    Returns:
        `running`, `failed` or `pending`; Serve's status; and the reason, cleaned, empty when there is none.
        The deployments' messages have a reason already while Serve retries.
    """
    status = state.get("status") if state else None
    bucket = "running" if status == "RUNNING" else "failed" if is_failed_status(status) else "pending"
    if not state or bucket == "running":
        return bucket, status, ""
    messages = [str(item.get("message") or "") for item in (state.get("deployments") or {}).values()]
    reasons = [reduced for message in messages if (reduced := clean_reason(message))]
    if not reasons and bucket == "failed":
        reasons = [clean_reason(str(state.get("message") or ""))]
    return bucket, status, "\n".join(reasons)


def clean_reason(message: str) -> str:
    """Reduce a deployment's message to what helps its author.

    Args:
        message: The message of Serve, often a traceback.

    Returns:
        At most `MAX_LINES` lines without colours, paths, addresses, secrets and frames of Ray or libraries.
    """
    read = [_ANSI.sub("", line[:MAX_READ_CHARS]) for line in message.splitlines()[-MAX_READ_LINES:]]
    lines = [line.rstrip() for line in read if line.strip(" ^~\t")]
    kept = _without_foreign_frames(lines)
    own = [at for at, line in enumerate(kept) if _FRAME.match(line)]
    # The text before the author's first frame is the call stack of Serve and Ray.
    cleaned = [_cleaned(line) for line in kept[own[0] if own else 0 :][-MAX_LINES:]]
    return "\n".join(line for line in cleaned if line.strip())[-MAX_CHARS:]


def _cleaned(line: str) -> str:
    """A line with its indentation, which shows to which frame it belongs."""
    text = line.lstrip()
    indent = " " * min(len(line) - len(text), 4)
    text = _ADDRESS.sub("", _WORKER.sub("", _FOLDERS.sub(r"\1", text)))
    return indent + clean(text)[:MAX_CHARS]


def _without_foreign_frames(lines: list[str]) -> list[str]:
    """The lines without the frames of Ray and libraries; a frame is one line and its source lines."""
    kept: list[str] = []
    foreign = False
    for line in lines:
        frame = _FRAME.match(line)
        if frame:
            foreign = not _PACKAGE.search(frame["file"]) and bool(_LIBRARY_FILE.search(frame["file"]))
        elif foreign and line.startswith("    "):
            continue
        else:
            foreign = False
        if not foreign and line.strip() != "Traceback (most recent call last):":
            kept.append(line)
    return kept


def _value(status: Any) -> str:
    return str(getattr(status, "value", status))
