"""`serve_options` of config.yaml: what is known, and what it means in replicas."""

from collections.abc import Mapping
from typing import Any

KNOWN = frozenset(
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
BATCH = frozenset({"max_batch_size", "batch_wait_timeout_s"})


class ServeOptionsError(ValueError):
    """`serve_options` has something that Serve or this project does not know."""


def checked(options: Mapping[str, Any], num_replicas: int | None) -> dict[str, Any]:
    """The options, refused when a key is unknown; `num_replicas` of the run's parameters goes first."""
    unknown = sorted(set(options) - KNOWN)
    if unknown:
        raise ServeOptionsError(
            f"serve_options: unknown {', '.join(unknown)} (known: {', '.join(sorted(KNOWN))})"
        )
    result = {name: value for name, value in options.items() if value is not None}
    batch = result.get("batch")
    if batch is not None and (not isinstance(batch, dict) or set(batch) - BATCH):
        raise ServeOptionsError(f"serve_options: batch must be a mapping of {', '.join(sorted(BATCH))}")
    if num_replicas is not None:
        result.pop("autoscaling_config", None)
        result["num_replicas"] = num_replicas
    if "num_replicas" in result and isinstance(result.get("autoscaling_config"), dict):
        raise ServeOptionsError("serve_options: give num_replicas or autoscaling_config, not both")
    return result


def replicas(options: Mapping[str, Any]) -> int:
    """How many replicas start: with autoscaling the initial or the least number, at least 1; default 1."""
    scaling = options.get("autoscaling_config")
    if isinstance(scaling, Mapping):
        wanted = scaling.get("initial_replicas") or scaling.get("min_replicas") or 1
    else:
        wanted = options.get("num_replicas") or 1
    return max(1, int(wanted)) if wanted != "auto" else 1
