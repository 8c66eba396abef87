"""Redis stops and starts again: workers survive, and what they run is run and acknowledged once."""

import time

import pytest

from tests.integration.broker.broker_site import Site


@pytest.mark.parametrize("pool", ["threads", pytest.param("prefork", marks=pytest.mark.chaos)])
def test_worker_survives_an_outage_while_it_holds_messages(site: Site, pool: str) -> None:
    worker = site.worker(pool=pool, concurrency=2, vt=30)
    site.send("running", 6)
    site.send("waiting", countdown=3)
    site.wait(lambda: len(site.begun()) == 1 and site.held() == 2, 5, "one runs, one waits")
    site.server.stop()
    site.misses_redis(worker)
    assert worker.alive
    site.server.start()
    site.send("new")

    site.wait(lambda: {"running", "waiting", "new"} <= set(site.done()), 12, "all done")
    site.wait(site.quiet, 5, "all acknowledged")
    assert sorted(site.done()) == ["new", "running", "waiting"], "each once"
    assert worker.alive


@pytest.mark.chaos
def test_task_that_ends_in_an_outage_is_acknowledged_later(site: Site) -> None:
    worker = site.worker(vt=30)
    # Redis is down when the task ends, so that its acknowledgement fails.
    site.app.send_task("doze", [2], queue="first")
    site.wait(lambda: site.held() == 1, 5, "begun")
    site.server.stop()
    site.wait(lambda: "succeeded" in worker.log.read_text(), 5, "the task's end")
    site.server.start()
    site.wait(site.quiet, 5, "acknowledged although its time is not up")
    assert worker.alive


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_task_that_ends_in_a_long_outage_runs_once(site: Site, pool: str) -> None:
    # Given two workers and a task that ends while Redis is away for longer than the visibility timeout
    timeout = 2
    workers = [site.worker(pool=pool, concurrency=2, vt=timeout) for _ in range(2)]
    site.app.send_task("doze", [1.5], queue="first")
    site.wait(lambda: site.held() == 1, 5, "begun")
    site.server.stop()

    def count(text: str) -> int:
        return sum(worker.log.read_text().count(text) for worker in workers)

    for worker in workers:
        site.misses_redis(worker)
    if pool == "threads":
        site.wait(lambda: count("succeeded") == 1, 5, "the task's end")
    deadline = time.monotonic() + 2 * timeout
    site.wait(lambda: time.monotonic() > deadline, 2 * timeout, "the visibility timeout")

    # When Redis is there again
    site.server.start()

    # Then the task is acknowledged before anybody redelivers its message
    site.wait(site.quiet, 20, "acknowledged")
    assert count("] received") == count("succeeded") == 1


def test_task_that_outlasts_a_long_outage_runs_once(site: Site) -> None:
    # Given a task that still runs when Redis is there again after the visibility timeout
    worker = site.worker(concurrency=2, vt=4)
    site.app.send_task("doze", [9], queue="first")
    site.wait(lambda: site.held() == 1, 5, "begun")
    site.server.stop()
    deadline = time.monotonic() + 5
    site.wait(lambda: time.monotonic() > deadline, 5, "the visibility timeout")

    site.server.start()

    site.wait(lambda: "succeeded" in worker.log.read_text(), 15, "the task's end")
    site.wait(site.quiet, 20, "acknowledged")
    assert worker.log.read_text().count("] received") == 1


def test_cut_connections_do_not_run_a_task_twice(site: Site) -> None:
    site.worker(vt=30)
    site.send("running", 3)
    site.send("waiting", countdown=4)
    # (Held is not begun: the cut would hit the first write of the task itself.)
    site.wait(lambda: len(site.begun()) == 1 and site.held() == 2, 5, "one runs, one waits")
    site.redis.client_kill_filter(_type="normal", skipme=True)
    site.send("new")
    site.wait(lambda: len(site.done()) >= 3, 8, "all done")
    site.wait(site.quiet, 5, "all acknowledged")
    assert sorted(site.done()) == ["new", "running", "waiting"]


def test_lost_invalidation_listener_is_replaced(site: Site) -> None:
    site.worker()
    site.redis.client_kill_filter(_type="pubsub", skipme=True)
    site.send("new")
    site.wait(lambda: site.done() == ["new"], 5, "done")
    assert [value for value, _, _ in site.begun()] == ["new"], "once"


@pytest.mark.chaos
def test_worker_waits_for_a_redis_that_has_not_started(site: Site) -> None:
    site.server.stop()
    worker = site.worker(ready=False)
    site.misses_redis(worker)
    site.server.start()
    site.wait(lambda: "ready" in worker.tail(1000), 10, "ready")
    site.send("new")
    site.wait(lambda: site.done() == ["new"], 5, "done")
    assert [value for value, _, _ in site.begun()] == ["new"], "once"


@pytest.mark.chaos
def test_queues_are_polled_without_key_tracking(site: Site) -> None:
    site.redis.execute_command("ACL", "SETUSER", "default", "-client")
    worker = site.worker()
    started = time.monotonic()
    for value in range(5):
        site.send(value)
        site.wait(lambda: len(site.done()) == value + 1, 3, "done")  # noqa: B023 - called at once
    assert time.monotonic() - started < 20
    assert "rejects key tracking" in worker.tail(1000)
