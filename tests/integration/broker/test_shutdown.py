"""SIGTERM: running tasks are finished, waiting messages are requeued at once."""

import os
import signal
import time

import pytest

from tests.integration.broker.broker_harness import BrokerHarness


@pytest.mark.parametrize("pool", ["threads", pytest.param("prefork", marks=pytest.mark.chaos)])
def test_countdown_runs_in_time_while_a_worker_drains(broker: BrokerHarness, pool: str) -> None:
    # Given a worker with a message that is delayed and a task that runs for longer
    first = broker.start_worker(pool=pool, concurrency=1, visibility_timeout=30)
    due = time.time() + 3
    broker.send("late", countdown=3)
    broker.wait_for(lambda: broker.delayed_count() == 1, 5, "a delayed message")
    broker.send("running", 5)
    broker.wait_for(lambda: len(broker.started()) == 1, 5, "a running task")

    # When it is stopped and another worker starts
    os.kill(first.pid, signal.SIGTERM)
    broker.start_worker(visibility_timeout=30)
    broker.wait_for(lambda: "late" in broker.ended(), 6, "its end on the other worker")

    # Then the message is delivered once, at its time
    assert broker.ended()[0] == "late", "it waited for the running task"
    (late,) = (entry for entry in broker.started() if entry[0] == "late")
    assert due - 0.1 < float(late[2]) < due + 15, "not at its own time, or only after the visibility timeout"
    assert late[1] == "False"
    broker.wait_for(lambda: not first.alive, 8, "end of the first worker")
    assert sorted(broker.ended()) == ["late", "running"]
    assert broker.is_empty()


def test_sigterm_requeues_what_is_queued_in_the_pool(broker: BrokerHarness) -> None:
    first = broker.start_worker(concurrency=1, visibility_timeout=30, prefetch=3)
    for value in range(3):
        broker.send(value, 8)
    broker.wait_for(lambda: broker.unacked_count() == 3 and broker.started(), 5, "all messages in the worker")
    os.kill(first.pid, signal.SIGTERM)
    broker.wait_for(lambda: broker.redis.llen("first") == 2, 1, "the requeue of two messages")
    broker.wait_for(lambda: not first.alive, 12, "end of the worker")
    assert len(broker.ended()) == 1
    assert broker.unacked_count() == 0


def test_done_tasks_are_acknowledged_while_another_drains(broker: BrokerHarness) -> None:
    first = broker.start_worker(concurrency=2, visibility_timeout=30)
    broker.send("short", 1)
    broker.send("long", 4)
    broker.wait_for(lambda: len(broker.started()) == 2, 5, "two starts")
    os.kill(first.pid, signal.SIGTERM)
    broker.wait_for(
        lambda: broker.ended() == ["short"] and broker.unacked_count() == 1, 3, "the acknowledgement at once"
    )
    first.kill()


def test_idle_worker_ends_within_seconds(broker: BrokerHarness) -> None:
    first = broker.start_worker()
    os.kill(first.pid, signal.SIGTERM)
    broker.wait_for(lambda: not first.alive, 5, "end of the worker")
    assert "Traceback" not in first.tail(1000)
