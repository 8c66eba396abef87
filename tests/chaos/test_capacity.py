"""The capacity gate on a real Redis and real Celery workers, with an agent that has capacity or none."""

import contextlib
import re

import pytest

from tests.chaos.platform_harness import Fleet, PlatformHarness
from worker.sandbox import wait_for

DENIED = "Serve deploy denied: insufficient cluster capacity (['insufficient_cpu'])"


def waiting(fleet: Fleet) -> list[str]:
    """The jobs of the deployments that wait, in their order."""
    [key] = fleet.redis.keys("synapse:capacity:*:waiters") or [""]
    return [str(job) for job in fleet.redis.zrange(key, 0, -1)]


@pytest.mark.chaos
def test_deployments_wait_for_capacity_in_their_order(harness: PlatformHarness) -> None:
    with harness.fleet() as fleet, contextlib.ExitStack() as stack:
        # Given three deployments that wait for capacity, one after the other
        fleet.start_worker(concurrency=4)
        plugins = [harness.new_plugin() for _ in range(3)]
        jobs = [fleet.new_job(plugin, "deployment") for plugin in plugins]
        for number, (job, plugin) in enumerate(zip(jobs, plugins, strict=True), start=1):
            harness.agent.deny(plugin)
            stack.callback(harness.agent.deny, plugin, times=0)
            fleet.deploy(job, plugin, wait_for_capacity=60)
            wait_for(lambda: waiting(fleet) == jobs[:number], 20, f"{number} that wait")  # noqa: B023

        # When the first one is stopped, and there is capacity
        fleet.stop(jobs[0])
        wait_for(lambda: waiting(fleet) == jobs[1:], 20, "the first one to leave")
        for plugin in plugins:
            harness.agent.deny(plugin, times=0)

        # Then the others are deployed in the order in which they came, and nobody waits
        assert fleet.wait_for_end(jobs[0])["status"] == "STOPPED"
        for job, plugin in zip(jobs[1:], plugins[1:], strict=True):
            assert fleet.wait_for_end(job)["status"] == "SUCCEEDED"
            assert harness.serve.submission_count(plugin) == 1
        order = [name for (name,) in harness.serve.rows("SELECT name FROM submissions ORDER BY time")]
        assert [name for name in order if name in plugins] == plugins[1:]
        assert waiting(fleet) == []


@pytest.mark.chaos
def test_a_wait_for_capacity_in_vain_ends_with_the_gates_error(harness: PlatformHarness) -> None:
    with harness.fleet() as fleet:
        # Given a cluster without capacity
        fleet.start_worker(concurrency=2)
        plugin = harness.new_plugin()
        job = fleet.new_job(plugin, "deployment")
        harness.agent.deny(plugin)

        # When a deployment has waited for as long as it asked for
        fleet.deploy(job, plugin, wait_for_capacity=2)

        # Then it ends with the denial, which says for how long it waited
        end = fleet.wait_for_end(job)
        assert end["status"] == "FAILED"
        assert re.fullmatch(re.escape(DENIED) + r": waited \d+ s for it", end["result"]["error"])
        assert harness.serve.submission_count(plugin) == 0


def test_runs_end_whose_pre_processor_does_not_fit(harness: PlatformHarness) -> None:
    with harness.fleet() as fleet:
        # Given a pre-processor for which the cluster has no capacity
        code = fleet.new_pre_processor()
        harness.agent.deny(f"{code}@1.0.0")
        fleet.start_worker(concurrency=4)

        # When runs need it
        project = fleet.new_project(2)
        jobs = [fleet.new_job("echo@1.0.0", "to_task") for _ in range(3)]
        for job in jobs:
            fleet.to_task_by_inference(job, project, code)

        # Then they end with the gate's answer, and nothing was dispatched
        error = "Pre-processor deployment blocked by capacity gate (['insufficient_cpu'])"
        assert [fleet.wait_for_end(job)["result"] for job in jobs] == [{"error": error}] * 3
        assert fleet.dispatch_count(code) == 0
