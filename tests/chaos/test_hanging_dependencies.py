"""A dependency that hangs slows the runs that need it, and no others."""

import time

import pytest

from tests.chaos.platform_harness import Fleet, PlatformHarness
from worker.sandbox import wait_for

DEPLOYS = 50
MAX_DELAY_SECONDS = 2.0
"""Of a to_task beside them. One that waited for a hanging request would wait for ten seconds."""


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
            wait_for(lambda: not fleet.queues.waiting_count("deploy"), 20, "all deploys are under way")
            meanwhile = sorted(_to_task_seconds(fleet) for _ in range(3))

        # Then a to_task does not wait for one of their requests
        print(f"usual duration {usual:.2f} s, beside hanging deploys {meanwhile}")
        assert meanwhile[1] <= usual + MAX_DELAY_SECONDS
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


MAX_STOP_SECONDS = 4.0
"""Of a stop while the backend hangs; a request to it is given up after ten seconds."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("pool", "size"), [("threads", 4), pytest.param("prefork", 4, marks=pytest.mark.chaos)]
)
def test_a_stop_is_heard_while_the_backend_hangs(harness: PlatformHarness, pool: str, size: int) -> None:
    with harness.fleet_behind_proxy("SYNAPSE_HOST", harness.sandbox.backend.url) as (fleet, proxy):
        # Given many more runs than threads, whose steps call a backend that hangs
        fleet.start_worker(concurrency=size, pool=pool)
        project = fleet.new_project(2)
        jobs = [fleet.new_job("echo@1.0.0", "to_task") for _ in range(8 * size)]
        with proxy.fault("hang"):
            for job in jobs:
                fleet.to_task_by_file(job, project)
            wait_for(lambda: len(proxy.server.received) >= size - 1, 30, "requests that hang")

            # When one is stopped, then Redis says so at once, and the backend when it answers again
            for job in jobs[: 2 * size]:
                published = time.monotonic()
                fleet.stop(job)
                status = f"synapse:jobs:{{{job}}}"
                wait_for(lambda: fleet.redis.hget(status, "status") == "STOPPED", 30, "a stop")  # noqa: B023
                took = time.monotonic() - published
                print(f"a stop was heard after {took:.2f} s")
                assert took < MAX_STOP_SECONDS
        for job in jobs:
            expected = "STOPPED" if job in jobs[: 2 * size] else "SUCCEEDED"
            assert fleet.wait_for_end(job, 60)["status"] == expected


def _to_task_seconds(fleet: Fleet) -> float:
    job, project = fleet.new_job("echo@1.0.0", "to_task"), fleet.new_project(200)
    started = time.monotonic()
    fleet.to_task_by_file(job, project)
    assert fleet.wait_for_end(job, 60)["status"] == "SUCCEEDED"
    return time.monotonic() - started
