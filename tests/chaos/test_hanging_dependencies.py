"""A dependency that hangs slows the runs that need it, and no others."""

import time

import pytest

from tests.chaos.platform_harness import Fleet, PlatformHarness
from worker.sandbox import wait_for

DEPLOYS = 50


@pytest.mark.chaos
@pytest.mark.timeout(110)
def test_fifty_deploys_on_a_hanging_agent_delay_no_to_task(harness: PlatformHarness) -> None:
    with harness.fleet(WORKER_ANNOTATE_CHUNK="50") as fleet:
        # Given a worker of four threads, and the usual duration of a to_task on it
        worker = fleet.start_worker(concurrency=4)
        _to_task_seconds(fleet)
        usual = sorted(_to_task_seconds(fleet) for _ in range(3))[1]

        # When 50 deploys call an agent that hangs
        with harness.agent.hang():
            deploys = []
            for _ in range(DEPLOYS):
                plugin = harness.new_plugin()
                deploys.append(fleet.new_job(plugin, "deployment"))
                fleet.deploy(deploys[-1], plugin)
            received = len(harness.agent.server.received)
            wait_for(lambda: len(harness.agent.server.received) > received, 20, "a hanging deploy")
            wait_for(lambda: not fleet.redis.llen("deploy"), 20, "all deploys are under way")
            meanwhile = sorted(_to_task_seconds(fleet) for _ in range(3))

        # Then a to_task takes at most twice as long
        print(f"usual duration {usual:.2f} s, beside hanging deploys {meanwhile}")
        assert meanwhile[1] <= 2 * usual
        assert worker.alive
        # And every deploy ends: with the capacity gate's error, or well when the agent was back in time
        wait_for(lambda: all(fleet.has_ended(job) for job in deploys), 60, "ends of the deploys")
        auditor = fleet.auditor()
        for job in deploys:
            row = auditor.check_job(job)
            if row["status"] != "SUCCEEDED":
                assert row["result"]["error"].startswith(
                    "Serve deploy capacity check failed: agent unreachable (Client"
                )
        assert auditor.result.violations == []


def _to_task_seconds(fleet: Fleet) -> float:
    job, project = fleet.new_job("echo@1.0.0", "to_task"), fleet.new_project(200)
    started = time.monotonic()
    fleet.to_task_by_file(job, project)
    assert fleet.wait_for_end(job, 60)["status"] == "SUCCEEDED"
    return time.monotonic() - started
