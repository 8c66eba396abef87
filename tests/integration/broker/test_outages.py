"""Redis stops and starts again: workers survive, and each task runs and is acknowledged once."""

import time

import pytest

from tests.integration.broker.broker_harness import BrokerHarness


@pytest.mark.parametrize("pool", ["threads", pytest.param("prefork", marks=pytest.mark.chaos)])
def test_worker_survives_an_outage_while_it_holds_messages(broker: BrokerHarness, pool: str) -> None:
    worker = broker.start_worker(pool=pool, concurrency=2, visibility_timeout=30)
    broker.send("running", 6)
    broker.send("waiting", countdown=3)
    broker.wait_for(
        lambda: len(broker.started()) == broker.unacked_count() == broker.delayed_count() == 1,
        5,
        "one running and one waiting task",
    )
    broker.server.stop()
    broker.wait_for_connection_errors(worker)
    assert worker.alive
    broker.server.start()
    broker.send("new")

    broker.wait_for(lambda: {"running", "waiting", "new"} <= set(broker.ended()), 12, "the end of all tasks")
    broker.wait_for(broker.is_empty, 5, "the acknowledgements")
    assert sorted(broker.ended()) == ["new", "running", "waiting"], "a task ran twice"
    assert worker.alive


@pytest.mark.chaos
def test_task_that_ends_in_an_outage_is_acknowledged_later(broker: BrokerHarness) -> None:
    worker = broker.start_worker(visibility_timeout=30)
    # Redis is down when the task ends, so that its acknowledgement fails.
    broker.app.send_task("sleep", [2], queue="first")
    broker.wait_for(lambda: broker.unacked_count() == 1, 5, "its start")
    broker.server.stop()
    broker.wait_for(lambda: "succeeded" in worker.log.read_text(), 5, "the task's end")
    broker.server.start()
    broker.wait_for(broker.is_empty, 5, "the acknowledgement before the visibility timeout")
    assert worker.alive


@pytest.mark.chaos
@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_task_that_ends_in_a_long_outage_runs_once(broker: BrokerHarness, pool: str) -> None:
    # Given two workers and a task that ends while Redis is away for longer than the visibility timeout
    timeout = 2
    workers = [broker.start_worker(pool=pool, concurrency=2, visibility_timeout=timeout) for _ in range(2)]
    broker.app.send_task("sleep", [1.5], queue="first")
    broker.wait_for(lambda: broker.unacked_count() == 1, 5, "its start")
    broker.server.stop()

    def count(text: str) -> int:
        return sum(worker.log.read_text().count(text) for worker in workers)

    for worker in workers:
        broker.wait_for_connection_errors(worker)
    if pool == "threads":
        broker.wait_for(lambda: count("succeeded") == 1, 5, "the task's end")
    deadline = time.monotonic() + 2 * timeout
    broker.wait_for(lambda: time.monotonic() > deadline, 2 * timeout, "the visibility timeout")

    # When Redis is there again
    broker.server.start()

    # Then the task is acknowledged before anybody redelivers its message
    broker.wait_for(broker.is_empty, 20, "the acknowledgement")
    assert count("] received") == count("succeeded") == 1


@pytest.mark.chaos
def test_task_that_outlasts_a_long_outage_runs_once(broker: BrokerHarness) -> None:
    # Given a task that still runs when Redis is there again after the visibility timeout
    worker = broker.start_worker(concurrency=2, visibility_timeout=4)
    broker.app.send_task("sleep", [9], queue="first")
    broker.wait_for(lambda: broker.unacked_count() == 1, 5, "its start")
    broker.server.stop()
    deadline = time.monotonic() + 5
    broker.wait_for(lambda: time.monotonic() > deadline, 5, "the visibility timeout")

    broker.server.start()

    broker.wait_for(lambda: "succeeded" in worker.log.read_text(), 15, "the task's end")
    broker.wait_for(broker.is_empty, 20, "the acknowledgement")
    assert worker.log.read_text().count("] received") == 1


def test_cut_connections_do_not_run_a_task_twice(broker: BrokerHarness) -> None:
    broker.start_worker(visibility_timeout=30)
    broker.send("running", 3)
    broker.send("waiting", countdown=4)
    # (Fetched is not started: otherwise the cut might hit the first write of the task itself.)
    broker.wait_for(
        lambda: len(broker.started()) == broker.unacked_count() == broker.delayed_count() == 1,
        5,
        "one running and one waiting task",
    )
    broker.redis.client_kill_filter(_type="normal", skipme=True)
    broker.send("new")
    broker.wait_for(lambda: len(broker.ended()) >= 3, 8, "the end of all tasks")
    broker.wait_for(broker.is_empty, 5, "the acknowledgements")
    assert sorted(broker.ended()) == ["new", "running", "waiting"]


def test_lost_invalidation_listener_is_replaced(broker: BrokerHarness) -> None:
    broker.start_worker()
    broker.redis.client_kill_filter(_type="pubsub", skipme=True)
    broker.send("new")
    broker.wait_for(lambda: broker.ended() == ["new"], 5, "its end")
    assert [value for value, _, _ in broker.started()] == ["new"], "it ran twice"


@pytest.mark.chaos
def test_worker_waits_for_a_redis_that_has_not_started(broker: BrokerHarness) -> None:
    broker.server.stop()
    worker = broker.start_worker(wait_until_ready=False)
    broker.wait_for_connection_errors(worker)
    broker.server.start()
    broker.wait_for(lambda: "ready" in worker.tail(1000), 10, "its start")
    broker.send("new")
    broker.wait_for(lambda: broker.ended() == ["new"], 5, "its end")
    assert [value for value, _, _ in broker.started()] == ["new"], "it ran twice"


@pytest.mark.chaos
def test_queues_are_polled_without_key_tracking(broker: BrokerHarness) -> None:
    broker.redis.execute_command("ACL", "SETUSER", "default", "-client")
    worker = broker.start_worker()
    started = time.monotonic()
    for value in range(5):
        broker.send(value)
        broker.wait_for(lambda: len(broker.ended()) == value + 1, 3, "its end")  # noqa: B023 - called at once
    assert time.monotonic() - started < 20
    assert "rejects key tracking" in worker.tail(1000)
