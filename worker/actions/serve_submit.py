"""Submit an application to Ray Serve: in place, and without downtime where capacity allows."""

import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.messages import JsonObject
from worker.actions.application_builder import build_application
from worker.actions.serve_state import (
    DIGEST_VARIABLE,
    deployment_digest,
    forget_lost_controller,
    interpret_serve_status,
    load_serve,
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
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""In the environment of a Ray job; Ray's own name for it."""
BATCH_OPTIONS = frozenset({"max_batch_size", "batch_wait_timeout_s"})


class ServeOptionsError(ValueError):
    """`serve_options` has an unknown key or options that exclude each other."""


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
    unknown = sorted(set(options) - SERVE_OPTIONS)
    if unknown:
        raise ServeOptionsError(
            f"serve_options: unknown {', '.join(unknown)} (known: {', '.join(sorted(SERVE_OPTIONS))})"
        )
    result = {name: value for name, value in options.items() if value is not None}
    batch = result.get("batch")
    if batch is not None and (not isinstance(batch, dict) or set(batch) - BATCH_OPTIONS):
        raise ServeOptionsError(
            f"serve_options: batch must be a mapping of {', '.join(sorted(BATCH_OPTIONS))}"
        )
    if num_replicas is not None:
        result.pop("autoscaling_config", None)
        result["num_replicas"] = num_replicas
    if "num_replicas" in result and isinstance(result.get("autoscaling_config"), dict):
        raise ServeOptionsError("serve_options: give num_replicas or autoscaling_config, not both")
    return result


def initial_replicas(options: Mapping[str, Any]) -> int:
    """Count the replicas that Serve starts (contract: the capacity gate's `replicas`).

    Args:
        options: The checked serve options.

    Returns:
        `num_replicas`, or with autoscaling its initial or minimum number; at least 1, which is the default.
    """
    scaling = options.get("autoscaling_config")
    if isinstance(scaling, Mapping):
        wanted = scaling.get("initial_replicas") or scaling.get("min_replicas") or 1
    else:
        wanted = options.get("num_replicas") or 1
    return max(1, int(wanted)) if wanted != "auto" else 1


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


def submit(
    target: Any, plan: Mapping[str, Any], runtime_env: Mapping[str, Any], url: str, language: str = "en"
) -> JsonObject:
    """Submit an application and return at once; see `BaseDeploymentAction.submit`.

    Args:
        target: The entrypoint.
        plan: The value of `BaseDeploymentAction.plan`.
        runtime_env: The release's runtime environment, as the host made it.
        url: The backend's URL for the entrypoint's constructor.
        language: That of the messages for users.

    Returns:
        `{"submitted", "reason", "replaced", "messages"}`.

    Raises:
        TypeError: The target cannot be served.
    """
    load_serve()
    from ray import serve

    name = plan["app_name"]
    with _submitting:
        running = serve_details().get(name)
        if running is not None and _is_identical(running, plan["digest"]):
            return {"submitted": False, "reason": "identical", "replaced": True, "messages": []}
        known = dict(plan["serve_options"])
        batch = known.pop("batch", {})
        actor_options = _actor_options(plan, runtime_env)
        messages = []
        replaced = running is not None and _has_replicas(running)
        if replaced:
            surge = _surge_percent(plan, actor_options)
            known["max_surge_percent"] = surge
            kind = Text.REPLACED if surge else Text.REPLACED_WITH_WAIT
            messages.append(in_language(language, kind, app=name))
        made = build_application(target, {**known, "ray_actor_options": actor_options}, batch, url)
        serve.run_many(
            [serve.RunTarget(made, name=name, route_prefix=plan["route_prefix"])],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
    return {"submitted": True, "reason": None, "replaced": replaced, "messages": messages}


def wait_until_running(name: str, timeout: float, remove_failed: bool) -> None:
    """Block until an application runs.

    Args:
        name: The application's name.
        timeout: Seconds to wait.
        remove_failed: Whether to delete an application that fails or does not run in time.

    Raises:
        RuntimeError: It failed, or did not run in time; the message has Serve's reason.
    """
    deadline = time.monotonic() + timeout
    while True:
        bucket, status, reason = interpret_serve_status(serve_application_state(name))
        if bucket == "running":
            return
        if bucket == "failed" or time.monotonic() > deadline:
            if remove_failed:
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
    return any(deployment_digest(item) == digest for item in running["deployments"].values())


def _has_replicas(running: Mapping[str, Any]) -> bool:
    return any(
        replica["state"] == "RUNNING"
        for item in running["deployments"].values()
        for replica in item["replicas"]
    )


def _actor_options(plan: Mapping[str, Any], runtime_env: Mapping[str, Any]) -> JsonObject:
    asked = dict(plan["ray_actor_options"])
    own = dict(asked.pop("runtime_env", None) or {})
    variables = {**(runtime_env.get("env_vars") or {}), **(own.pop("env_vars", None) or {})}
    environment = {**own, **runtime_env, "env_vars": {**variables, DIGEST_VARIABLE: plan["digest"]}}
    return {**asked, "runtime_env": environment}


def _surge_percent(plan: Mapping[str, Any], actor_options: Mapping[str, Any]) -> int:
    """Percentage of replicas that may start beside the old ones, by the free resources; 0 when none fits."""
    import ray

    needs = {"CPU": actor_options.get("num_cpus", 1), "GPU": actor_options.get("num_gpus", 0)}
    needs["memory"] = actor_options.get("memory", 0)
    free = ray.available_resources()
    count = initial_replicas(plan["serve_options"])
    fits = [math.floor(free.get(name, 0) / need + 1e-9) for name, need in needs.items() if need]
    return int(min([count, *fits]) * 100 // count)
