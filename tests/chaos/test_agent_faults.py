"""A faulty agent fails the deployments that call it, with the contract's error, and no other run."""

import contextlib
import time

import pytest

from tests.chaos.platform_harness import PlatformHarness
from worker.sandbox import wait_for

ERRORS = {
    "500": "ServerError",
    "502": "ServerError",
    "html": "MalformedResponse",
    "nothing": "ClientConnectionError",
    "hang": "ClientTimeoutError",
}
"""Error of a deployment, by the fault that it meets."""


@pytest.mark.chaos
@pytest.mark.timeout(90)
def test_a_faulty_agent_fails_its_deployments_and_no_other_run(harness: PlatformHarness) -> None:
    with contextlib.ExitStack() as stack:
        # Given, for each fault, a fleet that reaches the agent through a proxy with the fault
        fleets = {}
        for fault in ERRORS:
            behind_proxy = harness.fleet_behind_proxy("SYNAPSE_AGENT_URL", harness.agent.url)
            fleets[fault], proxy = stack.enter_context(behind_proxy)
            fleets[fault].start_worker(concurrency=4)
            stack.enter_context(proxy.fault(fault))

        # When a deployment and an annotation of each fleet are published
        runs = {}
        for fault, fleet in fleets.items():
            plugin = harness.new_plugin()
            deploy, job = fleet.new_job(plugin, "deployment"), fleet.new_job("echo@1.0.0", "to_task")
            project = fleet.new_project(20)
            fleet.deploy(deploy, plugin)
            fleet.to_task_by_file(job, project)
            runs[fault] = (fleet, deploy, job, project)
        published = time.monotonic()

        # Then each deployment fails with the capacity gate's error, and nothing is submitted
        violations = []
        for fault, (fleet, deploy, job, project) in runs.items():
            wait_for(lambda: fleet.has_ended(deploy) and fleet.has_ended(job), 40, f"ends: {fault}")  # noqa: B023
            auditor = fleet.auditor()
            error = f"Serve deploy capacity check failed: agent unreachable ({ERRORS[fault]})"
            row = auditor.check_job(deploy)
            auditor.result.check(row["result"] == {"error": error}, f"{row['result']}")
            auditor.check_deployment(deploy)
            auditor.result.check(harness.serve.submission_count(row["plugin"]) == 0, "submitted")
            # And every task is annotated
            auditor.check_succeeded(job)
            auditor.check_tasks(job, project)
            violations += [f"agent {fault}: {violation}" for violation in auditor.result.violations]
        print(f"five faults of the agent: all runs ended after {time.monotonic() - published:.1f} s")
        assert violations == []
