"""What an application's replicas need of the cluster, and how many may start beside those they replace."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReplicaNeeds:
    """What each replica of a deployment takes of the cluster, and how many there are."""

    resources: Mapping[str, float]
    """By the name of Ray's resource."""
    replicas: int

    @classmethod
    def of(cls, actor_options: Mapping[str, Any], replicas: int) -> "ReplicaNeeds":
        """Read them from the options of Ray's actor.

        Args:
            actor_options: `num_cpus` (1 by default), `num_gpus`, `memory` and `resources` of one replica; or
                `bundles`, the sum of its placement group by resource.
            replicas: Their number; at least one is meant.

        Returns:
            The needs, without resources of which none is needed.
        """
        named = {
            "CPU": actor_options.get("num_cpus", 1),
            "GPU": actor_options.get("num_gpus", 0),
            "memory": actor_options.get("memory", 0),
            **(actor_options.get("resources") or {}),
        }
        named = actor_options.get("bundles") or named
        return cls({name: float(amount) for name, amount in named.items() if amount}, max(replicas, 1))


def surge_percent(deployments: Sequence[ReplicaNeeds]) -> int:
    """Find how many replicas may start beside the old ones.

    Args:
        deployments: The needs of the deployments that are replaced at once.

    Returns:
        The largest `max_surge_percent` that the cluster's free resources allow to all of them; 0 for none.
    """
    import ray

    free = ray.available_resources()
    return next((percent for percent in range(100, 0, -1) if _fits(deployments, percent, free)), 0)


def _fits(deployments: Sequence[ReplicaNeeds], percent: int, free: Mapping[str, float]) -> bool:
    needed: dict[str, float] = {}
    for each in deployments:
        extra = math.ceil(each.replicas * percent / 100)  # as Serve rounds
        for name, amount in each.resources.items():
            needed[name] = needed.get(name, 0) + amount * extra
    return all(amount <= free.get(name, 0) + 1e-9 for name, amount in needed.items())


def gate_request(deployments: Sequence[ReplicaNeeds]) -> dict[str, Any]:
    """Sum the needs up as the capacity gate asks for them: so many equal replicas.

    Args:
        deployments: The needs of all deployments of an application.

    Returns:
        `num_cpus`, `num_gpus` and `memory_bytes` of the largest replica (memory None when none is declared),
        and as `replicas` the smallest number that, times these, covers every sum.
    """
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory_bytes": "memory"}
    largest: dict[str, Any] = {}
    counts: list[int] = []
    for key, name in names.items():
        amounts = [(each.resources.get(name, 0.0), each.replicas) for each in deployments]
        largest[key] = max(amount for amount, _ in amounts)
        if largest[key]:
            counts.append(math.ceil(sum(amount * count for amount, count in amounts) / largest[key] - 1e-9))
    # Replicas that need nothing are counted, too.
    replicas = max(counts, default=sum(each.replicas for each in deployments))
    memory = int(largest["memory_bytes"]) or None
    return {**largest, "memory_bytes": memory, "replicas": replicas}


def gate_options(plan: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read from a plan what the capacity gate asks for.

    Args:
        plan: The value of `BaseDeploymentAction.plan`.

    Returns:
        `ray_actor_options` and `serve_options` for `check_serve_capacity`.
    """
    capacity = plan.get("capacity")
    if not capacity:
        return dict(plan["ray_actor_options"]), dict(plan["serve_options"])
    resources = {**capacity, "memory": capacity["memory_bytes"]}
    return resources, {"num_replicas": capacity["replicas"]}


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
