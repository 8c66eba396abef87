"""A stop is heard while plugin code on Ray or Ray itself hangs, and what the run has called is abandoned."""

import base64
import json
import os
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import psutil

from tests.harness.brokers import session_broker
from tests.integration.workflows.ray_harness import CONCURRENCY, RayHarness
from worker.broker.keys import unacked_key
from worker.plugins.ray_driver.process import CHILD_MODULE

MAX_STOP_SECONDS = 5.0
"""Two on a quiet machine."""
MAX_FREE_SECONDS = 15.0
"""Until a stopped run has no message and so holds no thread."""
QUEUES = ("deploy", "to_task", "annotate", "control")


def has_begun(harness: RayHarness, job: str) -> bool:
    steps = ("to_task.prepare", "deploy.capacity_gate")
    return harness.redis.hget(f"synapse:jobs:{{{job}}}", "step") in steps


def stop_within(harness: RayHarness, job: str, seconds: float) -> None:
    published = time.monotonic()
    harness.stop(job)
    harness.wait_for(lambda: harness.job(job)["status"] == "STOPPED", f"stop of job {job}", seconds + 10)
    took = time.monotonic() - published
    print(f"a stop was heard after {took:.2f} s")
    assert took < seconds


def wait_until_free(harness: RayHarness, jobs: Collection[str]) -> None:
    """Wait until no message of the jobs is in a queue or unacknowledged."""

    def has_message() -> bool:
        if session_broker.is_rabbitmq:  # which does not show whose messages those are
            return not harness.has_no_messages()
        found = [element for queue in QUEUES for element in harness.redis.lrange(queue, 0, -1)]
        found += [held.partition("\n")[2] for held in harness.redis.hvals(unacked_key())]
        bodies = (json.loads(base64.b64decode(json.loads(element)["body"])) for element in found)
        return any(str(body[1].get("job")) in jobs for body in bodies)

    begun = time.monotonic()
    harness.wait_for(lambda: not has_message(), "the threads are free", MAX_FREE_SECONDS)
    print(f"the threads were free after {time.monotonic() - begun:.2f} s")


@contextmanager
def frozen_driver(harness: RayHarness) -> Iterator[int]:
    """The worker's Ray driver hangs during the block."""
    children = psutil.Process(harness.worker.pid).children()
    [driver] = [child for child in children if CHILD_MODULE in child.cmdline()]
    os.kill(driver.pid, signal.SIGSTOP)
    try:
        yield driver.pid
    finally:
        if driver.is_running():
            os.kill(driver.pid, signal.SIGCONT)


def test_stops_end_the_calls_of_a_release_that_hangs_at_load(harness: RayHarness) -> None:
    # Given more runs of a release that hangs while it is loaded than its share, and a deployment that hangs
    project = harness.new_project(2)
    share = CONCURRENCY // 2
    jobs = [harness.to_task_by_file(project, "hangs_at_load@1.0.0") for _ in range(share + 2)]
    deploy = harness.deploy("hangs@1.0.0", num_cpus=0.1)
    harness.wait_for(lambda: harness.count_hanging("load") > 0, "the release is loaded", 90)
    harness.wait_for(lambda: harness.count_hanging("plan") == 1, "the deployment hangs, too", 60)
    harness.wait_for(lambda: all(has_begun(harness, job) for job in jobs), "all runs have begun", 30)

    # When they are stopped, then each stop is heard
    for job in (*jobs, deploy):
        stop_within(harness, job, MAX_STOP_SECONDS)

    # And the threads that the calls held are free
    wait_until_free(harness, {*jobs, deploy})
    assert harness.count_hanging("load") <= share


def test_a_stop_begins_no_further_call_of_a_hanging_release(harness: RayHarness) -> None:
    # Given a run of 64 tasks whose every conversion hangs
    job = harness.to_task_by_file(harness.new_project(64), "hangs@1.0.0")
    harness.wait_for(lambda: harness.count_hanging("convert") == 1, "the first call", 90)

    # When it is stopped, then it is the last one
    stop_within(harness, job, MAX_STOP_SECONDS)
    wait_until_free(harness, {job})
    assert harness.count_hanging("convert") == 1


def test_a_stop_is_heard_while_ray_hangs(harness: RayHarness) -> None:
    # Given a driver of Ray that answers nothing, and runs that call it
    project = harness.new_project(2)
    warm = harness.to_task_by_file(project)
    assert harness.wait_for_end(warm)["status"] == "SUCCEEDED"
    with frozen_driver(harness) as driver:
        jobs = [harness.to_task_by_file(project, "hangs@1.0.0") for _ in range(CONCURRENCY)]
        jobs.append(harness.deploy("hangs@1.0.0", num_cpus=0.1))
        harness.wait_for(lambda: all(has_begun(harness, job) for job in jobs), "all runs have begun", 30)

        # When they are stopped, then each stop is heard
        for job in jobs:
            stop_within(harness, job, MAX_STOP_SECONDS)

        # And their threads are free, though Ray still hangs, and though no deadline has killed its driver
        wait_until_free(harness, jobs)
        assert psutil.Process(driver).status() == psutil.STATUS_STOPPED

    # And it serves other runs when it goes on
    assert harness.wait_for_end(harness.to_task_by_file(harness.new_project(2)))["status"] == "SUCCEEDED"
