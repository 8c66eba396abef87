"""How many replicas may start beside those that they replace."""

import pytest

from worker.actions.replica_needs import ReplicaNeeds, surge_percent


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
