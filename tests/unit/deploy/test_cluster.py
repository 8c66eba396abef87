"""Serve, as the steps see it, through a connection that may be gone."""

import threading
from typing import Any

import pytest

from worker.deploy import cluster
from worker.deploy.cluster import RayCluster, ServeState, read_state
from worker.plugins import PluginHostUnavailableError


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    monkeypatch.setattr(cluster.session, "connect", lambda address: None)
    return RayCluster("127.0.0.1:6380")


def holds(monkeypatch: pytest.MonkeyPatch, look: Any) -> None:
    monkeypatch.setattr(cluster, "serve_details", look)


def test_an_application_that_serve_does_not_know(ray: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    holds(monkeypatch, lambda: {})
    assert ray.state("digits@1.0.0") == ServeState()


def test_an_application_that_runs(ray: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    holds(monkeypatch, lambda: {"digits@1.0.0": {"status": "RUNNING", "deployments": {}}})
    state = ray.state("digits@1.0.0")
    assert (state.exists, state.bucket, state.status) == (True, "running", "RUNNING")


def test_whatever_ray_raises_means_that_it_is_unavailable(
    ray: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> None:
        raise KeyError("controller")

    holds(monkeypatch, look)
    with pytest.raises(PluginHostUnavailableError, match="KeyError"):
        ray.state("digits@1.0.0")


def test_a_cluster_that_hangs_is_not_waited_for(ray: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    silence = threading.Event()
    monkeypatch.setattr(cluster, "ANSWER_TIMEOUT_SECONDS", 0.01)
    holds(monkeypatch, lambda: silence.wait(5) and {})
    with pytest.raises(PluginHostUnavailableError, match="no answer within"):
        ray.state("digits@1.0.0")
    silence.set()


def test_removal(ray: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        cluster, "remove_application", lambda name, *, wait: bool(removed.append((name, wait)))
    )
    ray.remove("digits@1.0.0")
    assert removed == [("digits@1.0.0", False)]  # a replica that starts goes late: no step waits for it


def test_a_state_is_read_from_serves_details() -> None:
    details = {
        "status": "DEPLOY_FAILED",
        "message": "Failed to update the deployments ['X'].",
        "deployments": {
            "X": {
                "status": "DEPLOY_FAILED",
                "message": "ValueError: no weights",
                "deployment_config": {
                    "ray_actor_options": {"runtime_env": {"env_vars": {"SYNAPSE_DEPLOYMENT_DIGEST": "d1"}}}
                },
            },
            "Y": {"status": "HEALTHY", "message": ""},
        },
    }
    state = read_state(details)
    assert (state.exists, state.bucket, state.status) == (True, "failed", "DEPLOY_FAILED")
    assert "no weights" in state.reason
    assert state.has_digest("d1")
    assert not state.has_digest("d2")
    assert read_state({"status": "DEPLOYING", "deployments": {}}).has_digest("d1")
    assert not ServeState().has_digest("d1")
    assert read_state({**details, "status": "DELETING"}) == ServeState()
