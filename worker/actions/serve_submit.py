"""Submit an application to Ray Serve: in place, and without downtime where capacity allows."""

import inspect
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.messages import JsonObject
from worker.actions.application_builder import (
    ServeOptionsError,
    allow_surge,
    bound_deployments,
    build_application,
    is_builder,
    merged_runtime_env,
    needs_of,
)
from worker.actions.replica_needs import gate_request
from worker.actions.serve_contents import keep_content, put_back
from worker.actions.serve_state import (
    DIGEST_VARIABLE,
    deployment_digest,
    forget_lost_controller,
    interpret_serve_status,
    is_content_of,
    load_serve,
    route_in_force,
    serve_application_state,
    serve_details,
)
from worker.workflow.texts import Text, in_language

SERVE_OPTIONS = frozenset(
    {
        "num_replicas",
        "autoscaling_config",
        "max_ongoing_requests",
        "max_queued_requests",
        "batch",
        "health_check_period_s",
        "health_check_timeout_s",
        "graceful_shutdown_timeout_s",
        "graceful_shutdown_wait_loop_s",
    }
)
"""Those that are known without importing Serve, which knows more."""
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""In the environment of a Ray job; Ray's own name for it."""
REMOVED_OPTIONS = frozenset({"_func_or_class", "version"})
BATCH_OPTIONS = frozenset({"max_batch_size", "batch_wait_timeout_s"})


def check_serve_options(options: Mapping[str, Any], num_replicas: int | None) -> JsonObject:
    """Check the serve options of a run.

    Args:
        options: The `serve_options` of config.yaml.
        num_replicas: The run's parameter, which takes precedence over the options; None for none.

    Returns:
        The options without those that are None.

    Raises:
        ServeOptionsError: A key is unknown, or `num_replicas` and `autoscaling_config` are both given.
    """
    known = SERVE_OPTIONS if set(options) <= SERVE_OPTIONS else _all_options()
    if unknown := sorted(set(options) - known):
        raise ServeOptionsError(
            f"serve_options: unknown {', '.join(unknown)} (known: {', '.join(sorted(known))})"
        )
    result = {name: value for name, value in options.items() if value is not None}
    if result.get("autoscaling_config") == "auto":
        del result["autoscaling_config"]
        result["num_replicas"] = "auto"
    batch = result.get("batch")
    if batch is not None and (not isinstance(batch, dict) or set(batch) - BATCH_OPTIONS):
        raise ServeOptionsError(
            f"serve_options: batch must be a mapping of {', '.join(sorted(BATCH_OPTIONS))}"
        )
    if num_replicas is not None:
        result.pop("autoscaling_config", None)
        result["num_replicas"] = num_replicas
    if result.get("num_replicas", "auto") != "auto" and "autoscaling_config" in result:
        raise ServeOptionsError("serve_options: give num_replicas or autoscaling_config, not both")
    return result


def _all_options() -> frozenset[str]:
    """`batch`, and whatever `serve.deployment` of the installed Ray takes."""
    load_serve()
    from ray import serve

    taken = inspect.signature(serve.deployment).parameters
    return (SERVE_OPTIONS | taken.keys()) - REMOVED_OPTIONS


POLL_SECONDS = 0.5

_submitting = threading.Lock()
"""Serve's decorator, `bind` and submission share a table in the process that is not safe for threads."""


def connect(address: str | None, kwargs: Mapping[str, Any]) -> None:
    """Connect this process to a Ray cluster, with the current folder as the code to run.

    A Ray job has its environment already, and Ray rejects another one.

    Args:
        address: `host:port`; `kwargs["address"]` takes precedence.
        kwargs: Further arguments of `ray.init`.

    Raises:
        RuntimeError: No address is given.
    """
    import ray

    if ray.is_initialized():
        return
    address = kwargs.get("address") or address
    if not address:
        raise RuntimeError("no Ray cluster is configured: set RAY_ADDRESS (host:port)")
    settings: JsonObject = {"namespace": "synapse", "log_to_driver": False}
    if JOB_VARIABLE not in os.environ:
        settings["runtime_env"] = {"working_dir": str(Path.cwd())}
    settings |= kwargs
    ray.init(**{**settings, "address": address})


def has_own_options(target: Any) -> bool:
    """Say whether an entrypoint's own code can choose options, as a decorator does.

    Args:
        target: The entrypoint.

    Returns:
        False for a class and a function that answers requests, which have the options of the run alone.
    """
    if inspect.isfunction(target):
        return is_builder(target)
    # Not by their classes, for that would import Serve.
    return hasattr(target, "_bound_deployment") or hasattr(target, "_deployment_config")


def needed_capacity(
    target: Any, plan: Mapping[str, Any], url: str, arguments: Mapping[str, Any]
) -> JsonObject:
    """Find what the capacity gate has to ask for, from what would be deployed.

    Args:
        target: The entrypoint.
        plan: `ray_actor_options` and `serve_options` of the plan.
        url: The backend's URL for the entrypoint's constructor.
        arguments: What a function that builds an application gets.

    Returns:
        `num_cpus`, `num_gpus`, `memory_bytes` and `replicas`.

    Raises:
        TypeError: The target cannot be served.
        ServeOptionsError: The target cannot have the options.
    """
    load_serve()
    with _submitting:
        made = _build(target, plan, plan["ray_actor_options"], url, arguments)
        return gate_request([needs_of(each._bound_deployment) for each in bound_deployments(made)])


def _build(
    target: Any,
    plan: Mapping[str, Any],
    actor_options: Mapping[str, Any],
    url: str,
    arguments: Mapping[str, Any],
) -> Any:
    options = dict(plan["serve_options"])
    batch = options.pop("batch", {})
    options["ray_actor_options"] = dict(actor_options)
    return build_application(target, options, batch, url, arguments, plan.get("defaults") or ())


def submit(
    target: Any,
    plan: Mapping[str, Any],
    runtime_env: Mapping[str, Any],
    url: str,
    arguments: Mapping[str, Any],
    language: str = "en",
) -> JsonObject:
    """Submit an application and return at once; see `BaseDeploymentAction.submit`.

    Args:
        target: The entrypoint.
        plan: The value of `BaseDeploymentAction.plan`.
        runtime_env: The release's runtime environment, as the host made it.
        url: The backend's URL for the entrypoint's constructor.
        arguments: What a function that builds an application gets.
        language: That of the messages for users.

    Returns:
        `{"submitted", "reason", "replaced", "messages"}`. An application that is there keeps its route.

    Raises:
        TypeError: The target cannot be served.
        ServeOptionsError: The target cannot have the options, or another application has the route.
    """
    load_serve()
    from ray import serve

    name = plan["app_name"]
    with _submitting:
        applications = serve_details()
        running = applications.get(name)
        if running is not None and _is_identical(running, plan["digest"]):
            return {"submitted": False, "reason": "identical", "replaced": True, "messages": []}
        route = route_in_force(running) or plan["route_prefix"]
        _check_route(name, route, applications)
        made = _build(target, plan, _actor_options(plan, runtime_env), url, arguments)
        messages = []
        replaced = running is not None and _has_replicas(running)
        if running is not None and replaced:
            keep_content(name, running, plan["digest"])
            kind = Text.REPLACED if allow_surge(made) else Text.REPLACED_WITH_WAIT
            messages.append(in_language(language, kind, app=name))
        serve.run_many(
            [serve.RunTarget(made, name=name, route_prefix=route)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
    return {"submitted": True, "reason": None, "replaced": replaced, "messages": messages}


def _check_route(name: str, route: str | None, applications: Mapping[str, JsonObject]) -> None:
    for other, its in applications.items():
        if other != name and route and route_in_force(its) == route:
            raise ServeOptionsError(
                f"the route {route} is that of {other}: choose another get_route_prefix()"
            )


def wait_until_running(name: str, timeout: float, digest: str, remove_failed: bool) -> None:
    """Block until an application runs. One that does not is removed, or runs again what it ran before.

    Args:
        name: The application's name.
        timeout: Seconds to wait.
        digest: Of the plan that was submitted.
        remove_failed: Whether to delete an application that has nothing else to run.

    Raises:
        RuntimeError: It failed, or did not run in time; the message has Serve's reason.
    """
    deadline = time.monotonic() + timeout
    while True:
        bucket, status, reason = interpret_serve_status(serve_application_state(name))
        if bucket == "running":
            return
        if bucket == "failed" or time.monotonic() > deadline:
            if not put_back(name, serve_details().get(name), digest) and remove_failed:
                remove_application(name)
            what = f"reached {status}" if bucket == "failed" else f"did not run within {timeout:g} s"
            raise RuntimeError(f"Serve application {name} {what}{': ' if reason else ''}{reason}")
        time.sleep(POLL_SECONDS)


def remove_application(name: str, wait: bool = True) -> None:
    """Delete an application; nothing happens when no application has that name.

    Args:
        name: The application's name.
        wait: Whether to wait until its replicas are gone; a replica that is still starting ends only after
            Serve's grace period of 20 seconds.
    """
    load_serve()
    from ray import serve

    forget_lost_controller()
    serve.delete(name, _blocking=wait)


def _is_identical(running: Mapping[str, Any], digest: str) -> bool:
    """Whether the application that runs or starts is the one of the plan."""
    if running["status"] not in ("RUNNING", "DEPLOYING"):
        return False
    return any(is_content_of(deployment_digest(item), digest) for item in running["deployments"].values())


def _has_replicas(running: Mapping[str, Any]) -> bool:
    return any(
        replica["state"] == "RUNNING"
        for item in running["deployments"].values()
        for replica in item["replicas"]
    )


def _actor_options(plan: Mapping[str, Any], runtime_env: Mapping[str, Any]) -> JsonObject:
    asked = dict(plan["ray_actor_options"])
    environment = merged_runtime_env(runtime_env, asked.pop("runtime_env", None) or {})
    environment["env_vars"][DIGEST_VARIABLE] = plan["digest"]
    return {**asked, "runtime_env": environment}
