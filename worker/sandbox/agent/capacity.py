"""Decides whether replicas of a given size fit on the nodes; pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

TOLERANCE: Final = 1e-6
"""Ray counts in steps of 0.0001; rounding errors of float sums are smaller than this."""

REPLICA_LIMIT: Final = "max_concurrent_serve_replicas"
GPU_LIMIT: Final = "gpu_max_utilization_percent"

INSUFFICIENT_REASONS: Final = {
    "CPU": "insufficient_cpu",
    "GPU": "insufficient_gpu",
    "memory": "insufficient_memory",
}


@dataclass(frozen=True)
class Node:
    """A node's resources by Ray's names; resources that it does not have are left out."""

    id: str
    total: Mapping[str, float]
    used: Mapping[str, float] = field(default_factory=dict)

    def free(self, resource: str) -> float:
        """The free amount of a resource."""
        return self.total.get(resource, 0.0) - self.used.get(resource, 0.0)


@dataclass(frozen=True)
class Demand:
    """A number of replicas and the resources of each, by Ray's names."""

    replicas: int
    per_replica: Mapping[str, float]

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> "Demand":
        """Read the body of a feasibility request."""
        each = {
            "CPU": float(body.get("num_cpus", 1.0)),
            "GPU": float(body.get("num_gpus", 0.0)),
            "memory": float(body.get("memory_bytes") or 0),
        }
        return cls(int(body.get("replicas", 1)), {name: amount for name, amount in each.items() if amount})


def count_placeable(demand: Demand, nodes: Sequence[Node], resources: Sequence[str] | None = None) -> int:
    """How many replicas fit, first fit; `resources` limits the check to some of the resources."""
    each = {
        name: amount for name, amount in demand.per_replica.items() if resources is None or name in resources
    }
    if not each:
        return demand.replicas if nodes else 0
    placed = 0
    for node in nodes:
        free = {name: node.free(name) for name in each}
        while placed < demand.replicas and all(free[name] + TOLERANCE >= each[name] for name in each):
            placed += 1
            for name in each:
                free[name] -= each[name]
    return placed


def feasibility(
    demand: Demand, nodes: Sequence[Node], policy: Mapping[str, Any], serve_replicas: int
) -> dict[str, object]:
    """The answer to a feasibility request.

    A rolling update runs the old and the new version side by side, so the resources of an application are not
    counted as free for its next version.
    """
    feasible = count_placeable(demand, nodes)
    reasons = []
    if feasible < demand.replicas:
        short = [
            name for name in demand.per_replica if count_placeable(demand, nodes, [name]) < demand.replicas
        ]
        # When each resource fits alone but no node has all of them, every resource is insufficient.
        reasons = [INSUFFICIENT_REASONS[name] for name in short or demand.per_replica]
    limit = policy.get(REPLICA_LIMIT)
    if limit is not None and serve_replicas + demand.replicas > limit:
        reasons.append(f"{REPLICA_LIMIT}_exceeded")
        feasible = min(feasible, max(0, limit - serve_replicas))
    if demand.per_replica.get("GPU") and gpu_utilization(nodes) > policy.get(GPU_LIMIT, 100):
        reasons.append(f"{GPU_LIMIT}_exceeded")
        feasible = 0
    return {"allowed": not reasons, "reasons": reasons, "feasible_replicas": feasible}


def gpu_utilization(nodes: Sequence[Node]) -> float:
    """Percentage of the GPUs that is in use; 0 without GPUs."""
    total = sum(node.total.get("GPU", 0.0) for node in nodes)
    used = sum(node.used.get("GPU", 0.0) for node in nodes)
    return 100 * used / total if total else 0.0
