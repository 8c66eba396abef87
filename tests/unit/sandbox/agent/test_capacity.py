"""Whether replicas fit: the pure functions of the agent."""

from typing import Any

import pytest

from worker.sandbox.agent.capacity import Demand, Node, count_placeable, feasibility

GB = 1024**3


def node(name: str = "a", used: dict[str, float] | None = None, **total: float) -> Node:
    return Node(name, total, used or {})


@pytest.mark.parametrize(
    ("each", "replicas", "nodes", "fit"),
    [
        ({"CPU": 1.0}, 4, [node(CPU=4)], 4),
        ({"CPU": 1.0}, 5, [node(CPU=4)], 4),
        ({"CPU": 1.0}, 3, [node(CPU=4, used={"CPU": 2})], 2),
        ({"CPU": 3.0}, 2, [node("a", CPU=4), node("b", CPU=4)], 2),
        # Six CPUs are free, but no node has four.
        ({"CPU": 4.0}, 1, [node("a", CPU=3), node("b", CPU=3)], 0),
        ({"CPU": 0.1}, 10, [node(CPU=1)], 10),
        ({"CPU": 1.0, "GPU": 0.5}, 3, [node(CPU=8, GPU=1)], 2),
        ({"CPU": 1.0, "GPU": 1.0}, 1, [node("a", CPU=8), node("b", CPU=1, GPU=1)], 1),
        ({}, 3, [node(CPU=1)], 3),
        ({}, 3, [], 0),
        ({"CPU": 1.0}, 1, [], 0),
    ],
)
def test_each_replica_needs_one_node_with_capacity(
    each: dict[str, float], replicas: int, nodes: list[Node], fit: int
) -> None:
    assert count_placeable(Demand(replicas, each), nodes) == fit


@pytest.mark.parametrize(
    ("each", "nodes", "reasons"),
    [
        ({"CPU": 1.0}, [node(CPU=1)], []),
        ({"CPU": 2.0}, [node(CPU=1)], ["insufficient_cpu"]),
        ({"CPU": 1.0, "GPU": 1.0}, [node(CPU=1)], ["insufficient_gpu"]),
        ({"CPU": 1.0, "memory": 2.0 * GB}, [node(CPU=1, memory=GB)], ["insufficient_memory"]),
        ({"CPU": 2.0, "GPU": 1.0}, [node(CPU=1)], ["insufficient_cpu", "insufficient_gpu"]),
        # Each resource is free, but not on the same node.
        (
            {"CPU": 4.0, "GPU": 1.0},
            [node("a", CPU=4), node("b", CPU=1, GPU=1)],
            ["insufficient_cpu", "insufficient_gpu"],
        ),
    ],
)
def test_reasons_name_insufficient_resources(
    each: dict[str, float], nodes: list[Node], reasons: list[str]
) -> None:
    answer = feasibility(Demand(1, each), nodes, {}, serve_replicas=0)
    assert answer == {"allowed": not reasons, "reasons": reasons, "feasible_replicas": int(not reasons)}


@pytest.mark.parametrize(
    ("policy", "running", "feasible", "reasons"),
    [
        ({"max_concurrent_serve_replicas": None}, 50, 2, []),
        ({"max_concurrent_serve_replicas": 4}, 2, 2, []),
        ({"max_concurrent_serve_replicas": 4}, 3, 1, ["max_concurrent_serve_replicas_exceeded"]),
        ({"max_concurrent_serve_replicas": 4}, 9, 0, ["max_concurrent_serve_replicas_exceeded"]),
    ],
)
def test_policy_limits_replicas(
    policy: dict[str, Any], running: int, feasible: int, reasons: list[str]
) -> None:
    answer = feasibility(Demand(2, {"CPU": 1.0}), [node(CPU=8)], policy, running)
    assert answer == {"allowed": not reasons, "reasons": reasons, "feasible_replicas": feasible}


def test_policy_limits_gpu_utilization() -> None:
    busy = [node(CPU=8, GPU=4, used={"GPU": 3})]
    answer = feasibility(Demand(1, {"CPU": 1.0, "GPU": 1.0}), busy, {"gpu_max_utilization_percent": 50}, 0)
    assert answer["reasons"] == ["gpu_max_utilization_percent_exceeded"]
    assert answer["feasible_replicas"] == 0
    without_gpu = feasibility(Demand(1, {"CPU": 1.0}), busy, {"gpu_max_utilization_percent": 50}, 0)
    assert without_gpu["allowed"]


def test_demand_has_the_defaults_of_the_api() -> None:
    assert Demand.parse({"kind": "serve"}) == Demand(1, {"CPU": 1.0})
    given = {"num_cpus": 0, "num_gpus": 0.5, "memory_bytes": GB, "replicas": 3}
    assert Demand.parse(given) == Demand(3, {"GPU": 0.5, "memory": float(GB)})
