"""Which packages Ray keeps."""

from typing import Any

import pytest
from fakeredis import FakeRedis

from tests.harness.fake_ray_driver import FakeRayDriver
from tests.unit.deploy.deploy_harness import APP, DeployHarness
from worker.deploy.packages import DeployedPackages
from worker.plugins import PluginHostUnavailableError, RayDriverError, ReleaseInvalidError
from worker.plugins.ray_driver import RayConnection

A, B = "gcs://_ray_pkg_a.zip", "gcs://_ray_pkg_b.zip"


def running(*packages: str) -> dict[str, Any]:
    """An application of Serve's details, with a deployment for each package."""
    return {
        "status": "RUNNING",
        "deployments": {
            package: {"deployment_config": {"ray_actor_options": {"runtime_env": {"working_dir": package}}}}
            for package in packages
        },
    }


class Packages:
    """A plugin host that has packages, and a store of the releases that they were made of."""

    def __init__(self) -> None:
        self.there = {A, B}
        self.pinned: list[str] = []
        self.restored: list[str] = []
        self.error: Exception | None = None
        self.restore_error: Exception | None = None
        self.contents = {"digits@1.0.0": A}
        """The package of each release as it is now; others cannot be read."""

    def pin(self, package: str) -> bool:
        if self.error is not None:
            raise self.error
        self.pinned.append(package)
        return package in self.there

    def restore(self, package: str, release: str) -> bool:
        if self.restore_error is not None:
            raise self.restore_error
        if self.contents[release] != package:
            return False
        self.restored.append(package)
        return True

    def get(self, release: str) -> str:
        if release not in self.contents:
            raise ReleaseInvalidError("config.yaml is no mapping")
        return release


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeRayDriver:
    monkeypatch.setattr("worker.plugins.ray_driver.connection._probe", lambda *_: None)
    return FakeRayDriver(live_applications={APP: running(A)}, kept_packages={})


@pytest.fixture
def packages(harness: DeployHarness, driver: FakeRayDriver, monkeypatch: pytest.MonkeyPatch) -> Packages:
    packages = Packages()
    monkeypatch.setattr(harness.services, "host", packages)
    monkeypatch.setattr(harness.services, "store", packages, raising=False)
    monkeypatch.setattr(harness.services, "ray", RayConnection("127.0.0.1:6380", driver), raising=False)
    return packages


def pin_again(deployed: DeployedPackages, redis: FakeRedis) -> None:
    """As after the interval of pins."""
    redis.delete("synapse:deployed:{any}:pinned")
    deployed.pin()


def test_packages_of_live_applications_are_pinned_once(harness: DeployHarness, packages: Packages) -> None:
    deployed = DeployedPackages(harness.services)
    deployed.pin()
    deployed.add(APP, "digits@1.0.0")
    deployed.add("gone@1.0.0", "gone@1.0.0")
    deployed.pin()
    deployed.pin()
    assert packages.pinned == [A]


def test_what_runs_is_pinned_though_its_release_is_another(
    harness: DeployHarness, packages: Packages, redis: FakeRedis, driver: FakeRayDriver
) -> None:
    # Given an application, and a release of that name that has other content since
    deployed = DeployedPackages(harness.services)
    deployed.add(APP, "digits@1.0.0")
    packages.contents = {"digits@1.0.0": B}

    # Then what runs is pinned
    deployed.pin()
    assert packages.pinned == [A]

    # When the new content is deployed, then that is pinned and the old one no more
    driver.answers["live_applications"] = {APP: running(B)}
    pin_again(deployed, redis)
    assert packages.pinned == [A, B]


def test_gone_package_is_restored_from_the_same_content_only(
    harness: DeployHarness, packages: Packages, redis: FakeRedis
) -> None:
    deployed = DeployedPackages(harness.services)
    deployed.add(APP, "digits@1.0.0")
    packages.there = set()

    deployed.pin()
    assert packages.restored == [A]

    packages.contents = {"digits@1.0.0": B}
    pin_again(deployed, redis)
    assert packages.restored == [A]


def test_packages_stay_pinned_while_serve_does_not_answer(
    harness: DeployHarness, packages: Packages, redis: FakeRedis, driver: FakeRayDriver
) -> None:
    deployed = DeployedPackages(harness.services)
    deployed.add(APP, "digits@1.0.0")
    deployed.pin()
    driver.answers["live_applications"] = RayDriverError("TimeoutError", "no answer")

    pin_again(deployed, redis)

    assert packages.pinned == [A, A]


@pytest.mark.parametrize("live", [{"another@1.0.0": running(B)}, {}], ids=["another is left", "none is left"])
def test_an_application_that_is_gone_is_pinned_no_more(
    harness: DeployHarness,
    packages: Packages,
    redis: FakeRedis,
    driver: FakeRayDriver,
    live: dict[str, Any],
) -> None:
    deployed = DeployedPackages(harness.services)
    deployed.add(APP, "digits@1.0.0")
    deployed.pin()
    driver.answers["live_applications"] = live

    pin_again(deployed, redis)

    assert packages.pinned == [A]
    assert redis.keys("synapse:deployed:*") == ["synapse:deployed:{any}:pinned"]


def test_packages_stay_pinned_while_serve_is_starting(
    harness: DeployHarness, packages: Packages, redis: FakeRedis, driver: FakeRayDriver
) -> None:
    deployed = DeployedPackages(harness.services)
    deployed.add(APP, "digits@1.0.0")
    deployed.pin()
    driver.answers["live_applications"] = None

    pin_again(deployed, redis)

    assert packages.pinned == [A, A]


def test_an_application_that_is_submitted_meanwhile_stays_known(
    harness: DeployHarness, packages: Packages, redis: FakeRedis, driver: FakeRayDriver
) -> None:
    # Given another application, which is submitted after Serve has answered
    deployed = DeployedPackages(harness.services)
    deployed.add(APP, "digits@1.0.0")

    def answer() -> dict[str, Any]:
        deployed.add("late@1.0.0", "late@1.0.0")
        return {APP: running(A)}

    driver.answers["live_applications"] = answer
    deployed.pin()

    # Then it is not taken to be gone
    assert redis.hkeys("synapse:deployed:{any}") == [APP, "late@1.0.0"]


def test_one_unusable_release_leaves_the_others_pinned(
    harness: DeployHarness, packages: Packages, driver: FakeRayDriver
) -> None:
    # Given two applications, and a release that cannot be read though its package is gone
    driver.answers["live_applications"] = {"broken@1.0.0": running(B), APP: running(A)}
    packages.there = {A}
    deployed = DeployedPackages(harness.services)
    deployed.add("broken@1.0.0", "broken@1.0.0")
    deployed.add(APP, "digits@1.0.0")

    # When packages are pinned
    deployed.pin()

    # Then the other one's is
    assert packages.pinned == [B, A]


@pytest.mark.parametrize(
    "error", [PluginHostUnavailableError("no answer within 30 s"), OSError("stale"), RecursionError()]
)
def test_a_package_that_cannot_be_restored_costs_no_other(
    harness: DeployHarness, packages: Packages, driver: FakeRayDriver, error: Exception
) -> None:
    # Given two applications, and a package that is gone and cannot be stored again
    driver.answers["live_applications"] = {"large@1.0.0": running(B), APP: running(A)}
    packages.there, packages.contents["large@1.0.0"], packages.restore_error = {A}, B, error
    deployed = DeployedPackages(harness.services)
    deployed.add("large@1.0.0", "large@1.0.0")
    deployed.add(APP, "digits@1.0.0")

    # When packages are pinned, then the other one's is
    deployed.pin()
    assert packages.pinned == [B, A]


def test_pinning_is_tried_again_after_an_error(harness: DeployHarness, packages: Packages) -> None:
    deployed = DeployedPackages(harness.services)
    deployed.add(APP, "digits@1.0.0")
    packages.error = PluginHostUnavailableError("away")
    deployed.pin()
    packages.error = None
    deployed.pin()
    assert packages.pinned == [A]


def test_what_an_application_ran_before_stays_pinned(
    harness: DeployHarness, packages: Packages, driver: FakeRayDriver
) -> None:
    # Given an application that was updated, and one that is gone
    driver.answers["kept_packages"] = {APP: [B], "gone@1.0.0": ["gcs://_ray_pkg_c.zip"]}
    deployed = DeployedPackages(harness.services)
    deployed.add(APP, APP)

    # When packages are pinned
    deployed.pin()

    # Then it is both what it runs and what it could be rolled back to
    assert sorted(packages.pinned) == [A, B]
