"""A dependency executed a request and its response was lost: the effect is not repeated."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.chaos.audit import Auditor
from tests.chaos.effect_log import Faults
from tests.chaos.faulty_services import Matcher
from tests.chaos.platform_harness import Fleet, PlatformHarness


@contextlib.contextmanager
def _fleet_losing_one_response(harness: PlatformHarness, matches: Matcher) -> Iterator[Fleet]:
    """A fleet with a worker; the backend's response to the first request that `matches` is lost."""
    lost: list[str] = []

    def is_first_match(method: str, path: str) -> bool:
        if lost or not matches(method, path):
            return False
        lost.append(path)
        return True

    behind_proxy = harness.fleet_behind_proxy("SYNAPSE_HOST", harness.sandbox.backend_url)
    with behind_proxy as (fleet, proxy), proxy.fault("lost", is_first_match):
        fleet.start_worker()
        yield fleet
        assert len(lost) == 1, "no request met the fault"


@pytest.mark.timeout(60)
def test_a_lost_dispatch_response_causes_no_second_dispatch(harness: PlatformHarness) -> None:
    with _fleet_losing_one_response(harness, lambda method, path: "/plugins/" in path) as fleet:
        # Given a run whose dispatch was executed, and whose response was lost
        code = fleet.new_pre_processor()
        first = fleet.new_job("echo@1.0.0", "to_task")
        fleet.to_task_by_inference(first, fleet.new_project(2), code)
        expected = "Pre-processor deployment dispatch failed (ClientConnectionError)"
        assert fleet.wait_for_end(first, 20)["result"] == {"error": expected}
        assert fleet.dispatch_count(code) == 1

        # When another run needs the same pre-processor (one that waited already would fail as well)
        second, project = fleet.new_job("echo@1.0.0", "to_task"), fleet.new_project(2)
        fleet.to_task_by_inference(second, project, code)

        # Then it uses the deployment that the first one dispatched
        assert fleet.wait_for_end(second, 20)["status"] == "SUCCEEDED"
        auditor = fleet.auditor()
        auditor.check_dispatched_once(code)
        auditor.check_tasks(second, project)
        assert auditor.result.violations == []


@pytest.mark.timeout(60)
def test_a_lost_registration_response_leaves_one_record(harness: PlatformHarness) -> None:
    with _fleet_losing_one_response(
        harness, lambda method, path: method == "POST" and "serve_app" in path
    ) as fleet:
        assert _deploy_and_audit(fleet).result.violations == []


@pytest.mark.timeout(60)
def test_a_lost_response_to_the_end_leaves_one_end(harness: PlatformHarness) -> None:
    with _fleet_losing_one_response(harness, lambda method, path: method == "PATCH") as fleet:
        assert _deploy_and_audit(fleet).result.violations == []


def _deploy_and_audit(fleet: Fleet) -> Auditor:
    plugin = fleet.harness.new_plugin()
    job = fleet.new_job(plugin, "deployment")
    faults = Faults()
    with faults.outage():
        fleet.deploy(job, plugin)
        fleet.wait_for_end(job, 20)
    auditor = fleet.auditor(faults)
    auditor.check_succeeded(job)
    auditor.check_deployment(job)
    return auditor
