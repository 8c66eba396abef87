"""Redis or the backend is down or faulty: every accepted run ends, and no effect is repeated."""

import contextlib
import os
import signal
import time
from random import Random

import pytest
from redis import Redis

from tests.chaos.faulty_services import let_fault_last
from tests.chaos.mixed_runs import MixedRuns
from tests.chaos.platform_harness import PlatformHarness
from worker.sandbox import SandboxError, wait_for
from worker.sandbox.servers import RedisServer

SHORT_OUTAGE_SECONDS = 2.0
LONG_OUTAGE_SECONDS = 30.0
FAULT_SECONDS = 8.0
HANG_SECONDS = 60.0
"""Six visibility timeouts."""
FAULTS = ("500", "502", "html", "nothing", "hang", "lost")


@pytest.mark.chaos
@pytest.mark.timeout(200)
@pytest.mark.parametrize("outage", ["restart", "short", "long", "hanging", "full"])
def test_runs_go_on_after_an_outage_of_redis(harness: PlatformHarness, outage: str) -> None:
    with harness.fleet() as fleet:
        # Given two workers with runs of every kind under way
        workers = [fleet.start_worker(), fleet.start_worker()]
        runs = MixedRuns(fleet, Random(1))
        runs.prepare(30)
        runs.publish(within_seconds=1.0)
        wait_for(lambda: any(fleet.has_ended(job) for job in runs.jobs), 30, "the first end")

        # When Redis is restarted, rejects connections for a while, hangs, or has no memory left
        with runs.faults.outage():
            _cause_outage(harness.sandbox.redis, outage)
        restored = time.time()

        # Then every run ends, on the same workers
        runs.wait_for_ends(60)
        print(f"Redis, {outage} outage: all runs ended {time.time() - restored:.1f} s after it")
        # (The backend publishes to the same Redis: by the contract, a dispatch during the outage may fail.)
        assert runs.audit(allow_failures=True).violations == []
        assert all(worker.alive for worker in workers)


def _cause_outage(server: RedisServer, outage: str) -> None:
    if outage == "restart":
        server.restart()
    elif outage == "hanging":
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            let_fault_last(LONG_OUTAGE_SECONDS)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
    elif outage == "full":
        with Redis.from_url(server.url) as redis:
            redis.config_set("maxmemory", 1)
            try:
                let_fault_last(LONG_OUTAGE_SECONDS)
            finally:
                redis.config_set("maxmemory", 0)
    else:
        server.kill()
        let_fault_last(SHORT_OUTAGE_SECONDS if outage == "short" else LONG_OUTAGE_SECONDS)
        server.start()


@pytest.mark.chaos
@pytest.mark.timeout(200)
def test_runs_outlive_faulty_responses_of_the_backend(harness: PlatformHarness) -> None:
    with contextlib.ExitStack() as stack:
        # Given, for each fault, a fleet that reaches the backend through a proxy, with runs under way
        runs_by_fault = {}
        for fault in FAULTS:
            behind_proxy = harness.fleet_behind_proxy("SYNAPSE_HOST", harness.sandbox.backend_url)
            fleet, proxy = stack.enter_context(behind_proxy)
            fleet.start_worker()
            runs = MixedRuns(fleet, Random(1))
            runs.prepare(20, pre_processors=2)
            runs_by_fault[fault] = (proxy, runs)
        for _, runs in runs_by_fault.values():
            runs.publish(within_seconds=0.3)

        # When the backend is faulty for a while
        with contextlib.ExitStack() as faults:
            for fault, (proxy, runs) in runs_by_fault.items():
                faults.enter_context(runs.faults.outage())
                faults.enter_context(proxy.fault(fault))
            let_fault_last(FAULT_SECONDS)
        restored = time.time()

        # Then every run ends, and no effect is repeated without that fault
        violations = []
        for fault, (_, runs) in runs_by_fault.items():
            # (The audit reports the runs that have not ended.)
            with contextlib.suppress(SandboxError):
                runs.wait_for_ends(60)
            seconds = time.time() - restored
            result = runs.audit(allow_failures=True)
            print(
                f"backend, {fault}: all runs ended after {seconds:.1f} s, failed {result.failed},"
                f" tasks written twice {result.tasks_written_twice}"
            )
            violations += [f"backend, {fault}: {violation}" for violation in result.violations]
        assert violations == []


@pytest.mark.redis_queues("copies of each message are counted in lists and among those held")
@pytest.mark.chaos
@pytest.mark.timeout(150)
def test_messages_do_not_multiply_while_the_backend_hangs(harness: PlatformHarness) -> None:
    with harness.fleet_behind_proxy("SYNAPSE_HOST", harness.sandbox.backend_url) as (fleet, proxy):
        # Given two workers, and runs whose messages come while the backend hangs
        fleet.start_worker()
        fleet.start_worker()
        runs = MixedRuns(fleet, Random(1))
        runs.prepare(20, pre_processors=2)
        with runs.faults.outage(), proxy.fault("hang"):
            runs.publish()

            # When the copies of each message are counted for as long as it hangs
            end, max_copies, max_messages = time.monotonic() + HANG_SECONDS, 0, 0
            while time.monotonic() < end:
                copies = fleet.copies_by_message()
                max_copies = max([max_copies, *copies.values()])
                max_messages = max(max_messages, copies.total())
                time.sleep(0.5)
        restored = time.time()

        # Then there are at most three at a time. Runs whose messages wait behind hanging threads have no
        # heartbeat, so the sweep publishes their messages again, each time after twice the interval.
        print(f"hanging backend: at most {max_copies} copies of a message, {max_messages} for 20 runs")
        assert max_copies <= 3
        # And every run ends
        runs.wait_for_ends(60)
        print(f"all runs ended {time.time() - restored:.1f} s after it")
        assert runs.audit(allow_failures=True).violations == []
