"""RabbitMQ as the broker: what shows most; `make test-rabbitmq` runs all tests with it."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest

from tests.chaos.faulty_services import let_fault_last
from tests.chaos.kill_points import Kind
from tests.chaos.mixed_runs import MixedRuns
from tests.chaos.platform_harness import Fleet, PlatformHarness
from tests.chaos.test_kill_points import SHORT_TEST, violations_after_crashes
from tests.harness.brokers import session_broker
from tests.harness.rabbitmq import IS_MISSING, MISSING, RabbitMQ, VirtualHost
from worker.runs.store import RunStore
from worker.sandbox import wait_for
from worker.sandbox.sandbox import AGENT_ID
from worker.sandbox.seed import SeededProject

pytestmark = pytest.mark.skipif(IS_MISSING, reason=MISSING)

KILLED = {
    Kind.DEPLOY: "create_serve_application:after",
    Kind.FILE: "ledger record:after",
    Kind.INFERENCE: "waitlist mark_sent:after",
    Kind.STOP: "finish:after",
}
"""One point of each kind at which a worker is killed."""
COUNTDOWN_SECONDS = 6.0
OUTAGE_SECONDS = 15.0


@pytest.fixture
def fleet(harness: PlatformHarness) -> Iterator[Fleet]:
    with harness.fleet(on_rabbitmq=True) as fleet:
        yield fleet


def publish(fleet: Fleet, **options: Any) -> tuple[str, SeededProject]:
    """Publish a run by file with these options of Celery's."""
    job, project = fleet.new_job("echo@1.0.0", "to_task"), fleet.new_project(3)
    params = {"name": "a test", "project": project.id, "agent": AGENT_ID}
    params |= {"target_specification_name": "label_1"}
    kwargs = {"job": job, "plugin": "echo@1.0.0", "params": params}
    fleet.publisher.send_task("to_task", kwargs=kwargs, queue="to_task", **options)
    return job, project


@pytest.mark.chaos
def test_runs_of_every_kind_end_on_rabbitmq(fleet: Fleet) -> None:
    # Given two workers
    workers = [fleet.start_worker(), fleet.start_worker()]

    # When runs deploy, annotate by file, and by inference, which waits for a pre-processor
    runs = MixedRuns(fleet, Random(1))
    runs.prepare(10, pre_processors=1)
    runs.publish()

    # Then each ends with the effects of one run, and leaves no message
    runs.wait_for_ends(60)
    assert runs.audit().violations == []
    wait_for(lambda: not fleet.unfinished(), 30, "the end of all messages")
    assert all(worker.alive for worker in workers)


@pytest.mark.chaos
@pytest.mark.timeout(180)
def test_a_kill_of_a_worker_on_rabbitmq_costs_no_run(harness: PlatformHarness) -> None:
    points = [point for point in SHORT_TEST if KILLED.get(point.kind) == point.point]
    assert len(points) == len(KILLED)
    assert violations_after_crashes(points, harness, on_rabbitmq=True) == []


def test_a_delayed_message_of_a_killed_worker_is_due_in_time(fleet: Fleet) -> None:
    # Given a message with a countdown in the memory of a worker
    first = fleet.start_worker()
    published = time.time()
    job, project = publish(fleet, countdown=COUNTDOWN_SECONDS)
    wait_for(lambda: first.is_ready and not fleet.queues.waiting_count("to_task"), 30, "the message is held")

    # When that worker is killed, then another one begins when it is due, and once
    first.kill()
    fleet.start_worker()
    end = fleet.wait_for_end(job, 60)
    assert end["status"] == "SUCCEEDED"
    assert end["updated"] - published >= COUNTDOWN_SECONDS
    auditor = fleet.auditor()
    auditor.check_tasks(job, project)
    assert auditor.result.violations == []


def test_urgent_runs_go_first_in_a_queue_with_priorities(fleet: Fleet) -> None:
    # Given a queue that its operator has declared with priorities, and runs of which the last is most urgent
    most = 9
    with fleet.publisher.connection_for_write() as connection:
        connection.default_channel.queue_declare(
            "to_task", durable=True, auto_delete=False, arguments={"x-max-priority": most}
        )
    fleet.publisher.conf.task_queue_max_priority = most
    priorities = (0, 3, most)
    jobs = [publish(fleet, priority=each, task_id=f"priority-{each}")[0] for each in priorities]

    # When a worker starts
    worker = fleet.start_worker(concurrency=4)
    for job in jobs:
        assert fleet.wait_for_end(job, 60)["status"] == "SUCCEEDED"

    # Then it takes the queue as it is, and the messages by their priority, which their runs keep
    assert worker.alive
    received = re.findall(r"\[(priority-\d)\] received", worker.tail(100_000))
    assert received == [f"priority-{each}" for each in reversed(priorities)]
    assert [RunStore(fleet.redis).load(job).priority for job in jobs] == list(priorities)


@contextmanager
def _outage(node: RabbitMQ, kind: str) -> Iterator[None]:
    """The node is away, or takes nothing, during the block."""
    assert node.process is not None
    if kind == "killed":
        node.kill()
        try:
            yield
        finally:
            node.start()
    elif kind == "hanging":
        pids = node.process.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
    else:
        limit = node.evaluate("vm_memory_monitor:get_vm_memory_high_watermark()")
        node.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.0)")
        try:
            yield
        finally:
            node.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({limit})")


@pytest.mark.chaos
@pytest.mark.timeout(280)
@pytest.mark.parametrize("outage", ["killed", "hanging", "out of memory"])
def test_runs_go_on_after_an_outage_of_rabbitmq(fleet: Fleet, outage: str) -> None:
    # Given two workers with runs of every kind under way
    workers = [fleet.start_worker(), fleet.start_worker()]
    runs = MixedRuns(fleet, Random(1))
    runs.prepare(30)
    runs.publish(within_seconds=1.0)
    wait_for(lambda: any(fleet.has_ended(job) for job in runs.jobs), 60, "the first end")

    # When RabbitMQ is away for a while
    with runs.faults.outage(), _outage(session_broker.node, outage):
        let_fault_last(OUTAGE_SECONDS)
    restored = time.time()

    # Then every run ends, on the same workers
    runs.wait_for_ends(90)
    print(f"RabbitMQ, {outage}: all runs ended {time.time() - restored:.1f} s after it")
    assert runs.audit(allow_failures=True).violations == []
    assert all(worker.alive for worker in workers)


@pytest.mark.chaos
@pytest.mark.timeout(200)
def test_a_countdown_may_be_longer_than_the_consumer_timeout(fleet: Fleet) -> None:
    # Given a RabbitMQ that closes the channel of who holds a message for longer than two seconds
    node = session_broker.node
    assert isinstance(fleet.queues, VirtualHost)
    for name, milliseconds in (("consumer_timeout", 2000), ("channel_tick_interval", 1000)):
        node.evaluate(f"application:set_env(rabbit, {name}, {milliseconds})")
    try:
        # When a message waits for longer than that in a worker
        worker = fleet.start_worker()
        job, project = publish(fleet, countdown=COUNTDOWN_SECONDS)

        # Then the worker connects again as often as it takes, and the run ends, once
        assert fleet.wait_for_end(job, 60)["status"] == "SUCCEEDED"
        assert worker.alive
        auditor = fleet.auditor()
        auditor.check_tasks(job, project)
        assert auditor.result.violations == []
    finally:
        for name, milliseconds in (("consumer_timeout", 1_800_000), ("channel_tick_interval", 60_000)):
            node.evaluate(f"application:set_env(rabbit, {name}, {milliseconds})")
