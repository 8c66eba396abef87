"""An agent that is out of order fails the deployments that ask it, by the contract, and nothing else."""

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


@pytest.mark.chaos
@pytest.mark.timeout(90)
def test_a_faulty_agent_ends_its_deployments_and_no_other_run(
    harness: PlatformHarness,
) -> None:
    with contextlib.ExitStack() as stack:
        # Given a site with its own way to the agent for each fault
        scenes = []
        for fault in ERRORS:
            site, proxy = stack.enter_context(harness.site_behind("SYNAPSE_AGENT_URL", harness.agent.url))
            site.worker(concurrency=4)
            scenes.append((fault, site))
            stack.enter_context(proxy.spoilt(fault))

        # When deployments and annotations come
        jobs = {}
        for fault, site in scenes:
            plugin = harness.plugin(harness.new_code())
            deploy, job = site.new_job(plugin, "deployment"), site.new_job("echo@1.0.0", "to_task")
            project = site.project(20)
            site.deploy(deploy, plugin)
            site.to_task_by_file(job, project)
            jobs[fault] = (site, deploy, job, project)
        begun = time.monotonic()

        # Then each deployment fails with the gate's message, and nothing is submitted
        wrong = []
        for fault, (site, deploy, job, project) in jobs.items():
            wait_for(lambda: site.is_over(deploy) and site.is_over(job), 40, f"ends: {fault}")  # noqa: B023
            auditor = site.auditor()
            error = f"Serve deploy capacity check failed: agent unreachable ({ERRORS[fault]})"
            row = auditor.job(deploy)
            auditor.findings.expect(row["result"] == {"error": error}, f"{row['result']}")
            auditor.deployment(deploy)
            submitted = harness.serve.rows("SELECT * FROM submissions WHERE name = ?", row["plugin"])
            auditor.findings.expect(submitted == [], "submitted")
            # And every task is annotated
            auditor.succeeded(job)
            auditor.tasks(job, project)
            wrong += [f"agent {fault}: {mistake}" for mistake in auditor.findings.wrong]
        print(f"five faults of the agent: all over after {time.monotonic() - begun:.1f} s")
        assert wrong == []
