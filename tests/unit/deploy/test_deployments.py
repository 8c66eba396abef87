"""Which run may remove an application, and which packages Ray keeps."""

from types import SimpleNamespace

import pytest
from fakeredis import FakeRedis

from tests.harness.fake_ray_driver import FakeRayDriver
from tests.unit.deploy.deploy_harness import APP, DeployHarness
from worker.deploy.deployments import DeployedPackages, Ownership
from worker.plugins import PluginCallError, PluginHostUnavailableError, ReleaseInvalidError
from worker.plugins.ray_driver import RayConnection
from worker.runs.reports.reporter import stop


@pytest.fixture
def ownership(harness: DeployHarness) -> Ownership:
    harness.accept("43")
    return Ownership(harness.services, APP)


def test_a_run_that_owns_nothing_may_not_remove_it(ownership: Ownership) -> None:
    assert not ownership.release("42")


def test_the_last_owner_may_remove_it_and_says_so_again(ownership: Ownership) -> None:
    ownership.acquire("42", existed=False)
    ownership.acquire("43", existed=False)
    assert not ownership.release("42")
    assert ownership.release("43")
    assert ownership.release("43")
    assert not ownership.existed_before()


def test_an_owner_whose_run_has_ended_does_not_count(ownership: Ownership, harness: DeployHarness) -> None:
    ownership.acquire("42", existed=False)
    ownership.acquire("43", existed=False)
    stop("42", harness.runs)
    assert ownership.release("43")


def test_an_application_that_ran_is_kept(ownership: Ownership) -> None:
    ownership.acquire("42", existed=False)
    assert not ownership.existed_before()
    ownership.mark_ran()
    assert ownership.existed_before()


class Packages:
    """A plugin host that records what it has to pin, and a store of releases."""

    def __init__(self) -> None:
        self.pinned: list[list[str]] = []
        self.error: Exception | None = None
        self.unusable = ("", "")
        """Whether the store or the host cannot use a release, and which."""

    def pin(self, releases: list[SimpleNamespace]) -> None:
        if self.error is not None:
            raise self.error
        names = [release.name for release in releases]
        if self.unusable == ("host", names[0]):
            raise PluginCallError("OSError", "cannot be packed")
        self.pinned.append(names)

    def get(self, release: str) -> SimpleNamespace:
        if self.unusable == ("store", release):
            raise ReleaseInvalidError("config.yaml is no mapping")
        return SimpleNamespace(name=release)


@pytest.fixture
def packages(harness: DeployHarness, monkeypatch: pytest.MonkeyPatch) -> Packages:
    packages = Packages()
    monkeypatch.setattr(harness.services, "host", packages)
    monkeypatch.setattr(harness.services, "store", packages, raising=False)
    monkeypatch.setattr("worker.plugins.ray_driver.connection._probe", lambda *_: None)
    driver = FakeRayDriver(serve_details={APP: {"status": "RUNNING"}})
    monkeypatch.setattr(harness.services, "ray", RayConnection("127.0.0.1:6380", driver), raising=False)
    return packages


def test_packages_of_live_applications_are_pinned_once(harness: DeployHarness, packages: Packages) -> None:
    deployed = DeployedPackages(harness.services)
    deployed.pin()
    deployed.add(APP, "digits@1.0.0")
    deployed.add("gone@1.0.0", "gone@1.0.0")
    deployed.pin()
    deployed.pin()
    assert packages.pinned == [["digits@1.0.0"]]


@pytest.mark.parametrize("fails_at", ["store", "host"])
def test_one_unusable_release_leaves_the_others_pinned(
    harness: DeployHarness, packages: Packages, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    # Given two applications, and a release that cannot be read or packed
    details = {APP: {"status": "RUNNING"}, "broken@1.0.0": {"status": "RUNNING"}}
    driver = FakeRayDriver(serve_details=details)
    monkeypatch.setattr(harness.services, "ray", RayConnection("127.0.0.1:6380", driver))
    packages.unusable = (fails_at, "broken@1.0.0")
    deployed = DeployedPackages(harness.services)
    deployed.add("broken@1.0.0", "broken@1.0.0")
    deployed.add(APP, "digits@1.0.0")

    # When packages are pinned
    deployed.pin()

    # Then the other one's is
    assert packages.pinned == [["digits@1.0.0"]]


def test_pinning_is_tried_again_after_an_error(
    harness: DeployHarness, packages: Packages, redis: FakeRedis
) -> None:
    deployed = DeployedPackages(harness.services)
    deployed.add(APP, "digits@1.0.0")
    packages.error = PluginHostUnavailableError("away")
    deployed.pin()
    packages.error = None
    deployed.pin()
    assert packages.pinned == [["digits@1.0.0"]]
