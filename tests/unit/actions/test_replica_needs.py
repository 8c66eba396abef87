"""What the gate is asked for, and how many replicas may start beside those that they replace."""

import pytest

from worker.actions.replica_needs import ReplicaNeeds, gate_request, surge_percent


@pytest.mark.parametrize(
    ("free", "replicas", "percent"),
    [({"CPU": 8.0}, 2, 100), ({"CPU": 2.0}, 2, 50), ({"CPU": 1.0}, 1, 0), ({"CPU": 3.0}, 3, 33), ({}, 1, 0)],
)
def test_surge_is_limited_by_free_resources(
    monkeypatch: pytest.MonkeyPatch, free: dict[str, float], replicas: int, percent: int
) -> None:
    monkeypatch.setattr("ray.available_resources", lambda: free)
    assert surge_percent([ReplicaNeeds.of({"num_cpus": 2}, replicas)]) == percent


@pytest.mark.parametrize(("cpus", "percent"), [(3.0, 100), (2.0, 0)])
def test_all_deployments_must_fit_beside_the_old_ones(
    monkeypatch: pytest.MonkeyPatch, cpus: float, percent: int
) -> None:
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": cpus, "GPU": 1.0})
    needs = [ReplicaNeeds.of({}, 1), ReplicaNeeds.of({"num_cpus": 2, "num_gpus": 0.5}, 1)]
    assert surge_percent(needs) == percent


@pytest.mark.parametrize(
    ("deployments", "asked"),
    [
        ([({"num_cpus": 2, "memory": 8}, 3)], (2, 0, 8, 3)),
        ([({}, 1), ({"num_cpus": 4}, 1)], (4, 0, None, 2)),
        ([({}, 8), ({"num_cpus": 4}, 1)], (4, 0, None, 3)),
        ([({"num_gpus": 1}, 2), ({"num_cpus": 4, "num_gpus": 0.5}, 1)], (4, 1, None, 3)),
        ([({"num_cpus": 0}, 2)], (0, 0, None, 2)),
    ],
)
def test_the_gate_is_asked_for_replicas_of_the_largest_kind(
    deployments: list[tuple[dict[str, float], int]], asked: tuple[float | None, ...]
) -> None:
    request = gate_request([ReplicaNeeds.of(options, replicas) for options, replicas in deployments])
    assert tuple(request[key] for key in ("num_cpus", "num_gpus", "memory_bytes", "replicas")) == asked
