"""Whether so many replicas of such a size fit on the nodes as they are; pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SLACK: Final = 1e-6
"""Ray counts in steps of 0.0001; sums of floats are off by less than this."""

REPLICA_LIMIT: Final = "max_concurrent_serve_replicas"
GPU_LIMIT: Final = "gpu_max_utilization_percent"

REASONS: Final = {"CPU": "insufficient_cpu", "GPU": "insufficient_gpu", "memory": "insufficient_memory"}


@dataclass(frozen=True)
class Node:
    """A node's resources by Ray's names; what a node does not have is not named."""

    id: str
    total: Mapping[str, float]
    used: Mapping[str, float] = field(default_factory=dict)

    def free(self, resource: str) -> float:
        """What is left of a resource."""
        return self.total.get(resource, 0.0) - self.used.get(resource, 0.0)


@dataclass(frozen=True)
class Demand:
    """`replicas` times the resources of one, by Ray's names."""

    replicas: int
    each: Mapping[str, float]

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "Demand":
        """Out of the body of a feasibility request."""
        each = {
            "CPU": float(body.get("num_cpus", 1.0)),
            "GPU": float(body.get("num_gpus", 0.0)),
            "memory": float(body.get("memory_bytes") or 0),
        }
        return cls(int(body.get("replicas", 1)), {name: amount for name, amount in each.items() if amount})


def placeable(demand: Demand, nodes: Sequence[Node], resources: Sequence[str] | None = None) -> int:
    """How many replicas find a place, first fit; `resources` looks at only some of what each needs."""
    each = {name: amount for name, amount in demand.each.items() if resources is None or name in resources}
    if not each:
        return demand.replicas if nodes else 0
    placed = 0
    for node in nodes:
        free = {name: node.free(name) for name in each}
        while placed < demand.replicas and all(free[name] + SLACK >= each[name] for name in each):
            placed += 1
            for name in each:
                free[name] -= each[name]
    return placed


def verdict(
    demand: Demand, nodes: Sequence[Node], policy: Mapping[str, Any], serve_replicas: int
) -> dict[str, Any]:
    """The agent's answer.

    A rolling update runs the old version beside the new one, so what an application holds now is not counted
    as free for its own successor.
    """
    feasible = placeable(demand, nodes)
    reasons = []
    if feasible < demand.replicas:
        alone = [name for name in demand.each if placeable(demand, nodes, [name]) < demand.replicas]
        # Each resource fits by itself and all of them on one node do not: then every one is short.
        reasons = [REASONS[name] for name in alone or demand.each]
    limit = policy.get(REPLICA_LIMIT)
    if limit is not None and serve_replicas + demand.replicas > limit:
        reasons.append(f"{REPLICA_LIMIT}_exceeded")
        feasible = min(feasible, max(0, limit - serve_replicas))
    if demand.each.get("GPU") and gpu_utilization(nodes) > policy.get(GPU_LIMIT, 100):
        reasons.append(f"{GPU_LIMIT}_exceeded")
        feasible = 0
    return {"allowed": not reasons, "reasons": reasons, "feasible_replicas": feasible}


def gpu_utilization(nodes: Sequence[Node]) -> float:
    """Percent of the GPUs that is spoken for; 0 where there is none."""
    total = sum(node.total.get("GPU", 0.0) for node in nodes)
    used = sum(node.used.get("GPU", 0.0) for node in nodes)
    return 100 * used / total if total else 0.0
