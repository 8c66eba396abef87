"""Serve, as the steps see it, through a connection that may be gone."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def serve_looks(driver: FakeRayDriver) -> int:
    return driver.calls.count("serve_details")


@pytest.fixture
def long_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is shared for longer than a slow machine takes."""
    monkeypatch.setattr("worker.deploy.cluster.SNAPSHOT_SECONDS", 60)


@pytest.mark.usefixtures("long_snapshots")
def test_looks_of_all_deployments_share_one_answer(ray: RayCluster, driver: FakeRayDriver) -> None:
    driver.answers["serve_details"] = {"a": {"status": "RUNNING"}, "b": {"status": "DEPLOYING"}}
    states = [ray.state(name, max_age=60).status for name in ("a", "b", "a", "c")]
    assert states == ["RUNNING", "DEPLOYING", "RUNNING", None]
    assert serve_looks(driver) == 1


def test_a_look_right_after_a_submission_asks_serve(ray: RayCluster, driver: FakeRayDriver) -> None:
    # Given an answer from before a submission
    assert not ray.state("a", max_age=60).exists
    driver.answers["serve_details"] = {"a": {"status": "DEPLOYING"}}

    # Then neither a look that is younger than that answer nor one that must be fresh takes it
    assert ray.state("a", max_age=1e-9).exists
    driver.answers["serve_details"] = {}
    assert not ray.state("a").exists
    assert serve_looks(driver) == 3


def test_an_answer_is_shared_for_a_second(
    ray: RayCluster, driver: FakeRayDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.state("a", max_age=60)
    monkeypatch.setattr("worker.deploy.cluster.SNAPSHOT_SECONDS", 1e-9)
    ray.state("a", max_age=60)
    assert serve_looks(driver) == 2


@pytest.mark.usefixtures("long_snapshots")
def test_threads_that_wait_for_an_answer_share_it_and_its_error(
    ray: RayCluster, driver: FakeRayDriver, eventually: Callable[[Callable[[], object]], None]
) -> None:
    # Given a Serve that does not answer while many look at it
    answered, looking = threading.Event(), []

    def hang() -> None:
        answered.wait(60)
        raise RayDriverError("TimeoutError", "no answer within 10 s")

    def look(name: str) -> None:
        looking.append(name)
        with pytest.raises(PluginHostUnavailableError):
            ray.state(name, max_age=60)

    driver.answers["serve_details"] = hang
    with ThreadPoolExecutor(8) as pool:
        looks = [pool.submit(look, str(number)) for number in range(8)]
        eventually(lambda: len(looking) == 8)

        # When the call fails
        answered.set()
        for each in looks:
            each.result()

    # Then it was the only one
    assert serve_looks(driver) == 1
