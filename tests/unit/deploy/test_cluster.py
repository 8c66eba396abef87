"""Serve, as the steps see it, through a connection that may be gone."""

from typing import Any

import pytest

from tests.harness.fake_ray_driver import FakeRayDriver
from worker.deploy.cluster import RayCluster, ServeState, read_state
from worker.plugins import PluginHostUnavailableError, RayDriverError
from worker.plugins.ray_driver import RayConnection


@pytest.fixture
def driver() -> FakeRayDriver:
    return FakeRayDriver(serve_details={})


@pytest.fixture
def ray(driver: FakeRayDriver, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    monkeypatch.setattr("worker.plugins.ray_driver.connection._probe", lambda *_: None)
    return RayCluster(RayConnection("127.0.0.1:6380", driver))


def test_an_application_that_serve_does_not_know(ray: RayCluster) -> None:
    assert ray.state("digits@1.0.0") == ServeState()


def test_an_application_that_runs(ray: RayCluster, driver: FakeRayDriver) -> None:
    driver.answers["serve_details"] = {"digits@1.0.0": {"status": "RUNNING", "deployments": {}}}
    state = ray.state("digits@1.0.0")
    assert (state.exists, state.bucket, state.status) == (True, "running", "RUNNING")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RayDriverError("KeyError", "KeyError", "'controller'"), "KeyError"),
        (RayDriverError("TimeoutError", "no answer within 10 s"), "no answer within"),
    ],
)
def test_whatever_ray_raises_means_that_it_is_unavailable(
    ray: RayCluster, driver: FakeRayDriver, error: Exception, message: str
) -> None:
    driver.answers["serve_details"] = error
    with pytest.raises(PluginHostUnavailableError, match=f"Ray Serve did not answer: {message}"):
        ray.state("digits@1.0.0")


def test_removal(ray: RayCluster, driver: FakeRayDriver) -> None:
    removed: list[tuple[Any, ...]] = []
    driver.answers["remove_application"] = lambda *arguments: removed.append(arguments)
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
