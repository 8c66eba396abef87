"""Redis or the backend is away, or answers nonsense: every accepted run ends, and nothing happens twice."""

import contextlib
import os
import signal
import time
from random import Random

import pytest

from tests.chaos.mixed_runs import MixedRuns
from tests.chaos.platform_harness import PlatformHarness
from worker.sandbox import SandboxError, wait_for

LONG = 30.0
"""Seconds for which Redis cannot be reached: connections are rejected (away) or never answered (silent)."""
SECONDS_OF_FAULT = 8.0
FAULTS = ("500", "502", "html", "nothing", "hang", "lost")


@pytest.mark.chaos
@pytest.mark.timeout(200)
@pytest.mark.parametrize("outage", ["restarted", "killed", "away", "silent"])
def test_runs_go_on_when_redis_is_back(harness: PlatformHarness, outage: str) -> None:
    with harness.site() as site:
        # Given two workers with runs of every kind under way
        workers = [site.worker(), site.worker()]
        runs = MixedRuns(site, Random(1))
        runs.prepare(30)
        runs.publish(over=1.0)
        wait_for(lambda: any(site.is_over(job) for job in runs.jobs), 30, "the first end")

        # When Redis goes away, and is retried
        server = harness.sandbox.redis
        with runs.disturbances.outage():
            if outage == "restarted":
                server.restart()
            elif outage == "silent":
                assert server.process is not None
                _freeze(server.process.pid, LONG)
            else:
                server.kill()
                time.sleep(2.0 if outage == "killed" else LONG)
                server.start()
        back = time.time()

        # Then every run ends, by the same workers
        runs.wait_for_ends(60)
        print(f"Redis {outage}: all over {time.time() - back:.1f} s after it was back")
        # (The backend publishes over the same Redis: a dispatch at that moment may fail by the contract.)
        findings = runs.audit(may_fail=True)
        assert findings.wrong == []
        assert all(worker.alive for worker in workers)


def _freeze(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.chaos
@pytest.mark.timeout(200)
def test_runs_wait_for_a_backend_that_answers_nonsense(harness: PlatformHarness) -> None:
    with contextlib.ExitStack() as stack:
        # Given a site with its own way to the backend for each fault, with runs under way
        scenes = []
        for fault in FAULTS:
            behind = harness.site_behind("SYNAPSE_HOST", harness.sandbox.backend_url)
            site, proxy = stack.enter_context(behind)
            site.worker()
            runs = MixedRuns(site, Random(1))
            runs.prepare(20, pre_processors=2)
            scenes.append((fault, proxy, runs))
        for _, _, runs in scenes:
            runs.publish(over=0.3)

        # When the backend is out of order for a while
        with contextlib.ExitStack() as faults:
            for fault, proxy, runs in scenes:
                faults.enter_context(runs.disturbances.outage())
                faults.enter_context(proxy.spoilt(fault))
            time.sleep(SECONDS_OF_FAULT)
        back = time.time()

        # Then every run ends
        wrong = []
        for fault, _, runs in scenes:
            with contextlib.suppress(SandboxError):
                runs.wait_for_ends(60)
            took = time.time() - back
            findings = runs.audit(may_fail=True)
            twice = findings.written_twice
            print(f"backend {fault}: ends after {took:.1f} s, failed {findings.failed}, twice {twice}")
            wrong += [f"backend {fault}: {mistake}" for mistake in findings.wrong]
        assert wrong == []


@pytest.mark.chaos
@pytest.mark.timeout(150)
def test_messages_do_not_multiply_while_the_backend_hangs(harness: PlatformHarness) -> None:
    with harness.site_behind("SYNAPSE_HOST", harness.sandbox.backend_url) as (site, proxy):
        # Given a backend that hangs for a minute, which is six visibility timeouts
        site.worker()
        site.worker()
        runs = MixedRuns(site, Random(1))
        runs.prepare(20, pre_processors=2)
        with runs.disturbances.outage(), proxy.spoilt("hang"):
            runs.publish()
            until, most, in_all = time.monotonic() + 60, 0, 0
            while time.monotonic() < until:
                copies = site.copies()
                most, in_all = max([most, *copies.values()]), max(in_all, copies.total())
                time.sleep(0.5)
        back = time.time()

        # Then there were never more than two copies of a message: what stands in the queues behind hanging
        # threads gives no heartbeat, so the sweep sends it again, each time twice as late
        print(f"backend hung for a minute: at most {most} of one message, {in_all} of 20 runs")
        assert most <= 3
        # And every run ends
        runs.wait_for_ends(60)
        print(f"all over {time.time() - back:.1f} s after it was back")
        assert runs.audit(may_fail=True).wrong == []
