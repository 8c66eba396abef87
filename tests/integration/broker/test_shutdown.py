"""SIGTERM: what runs is finished, what waits is available to other workers at once."""

import os
import signal
import time

import pytest

from tests.integration.broker.broker_site import Site


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_sigterm_requeues_a_countdown_while_a_task_runs(site: Site, pool: str) -> None:
    first = site.worker(pool=pool, concurrency=1, vt=30)
    due = time.time() + 3
    site.send("late", countdown=3)
    site.wait(lambda: site.held() == 1, 5, "one waits")
    site.send("running", 5)
    site.wait(lambda: len(site.begun()) == 1, 5, "one runs")

    os.kill(first.pid, signal.SIGTERM)
    site.wait(lambda: site.held() == 1 and site.redis.llen("first") == 1, 1, "requeued")
    assert first.alive
    site.worker(vt=30)
    site.wait(lambda: "late" in site.done(), 6, "done elsewhere")

    assert site.done()[0] == "late", "it did not wait for the running task"
    (late,) = (entry for entry in site.begun() if entry[0] == "late")
    assert due - 0.1 < float(late[2]) < due + 15, "at its own time, and not after the visibility timeout"
    assert late[1] == "True"
    site.wait(lambda: not first.alive, 8, "the first ended")
    assert sorted(site.done()) == ["late", "running"]
    assert site.quiet()


def test_sigterm_requeues_what_is_queued_in_the_pool(site: Site) -> None:
    first = site.worker(concurrency=1, vt=30)
    for value in range(3):
        site.send(value, 2, countdown=1)  # waiting tasks raise the prefetch, so all three reach the pool
    site.wait(lambda: len(site.begun()) == 1, 5, "one begun")
    time.sleep(0.3)
    os.kill(first.pid, signal.SIGTERM)
    site.wait(lambda: site.redis.llen("first") == 2, 1, "two requeued")
    site.wait(lambda: not first.alive, 5, "ended")
    assert len(site.done()) == 1
    assert site.held() == 0


def test_done_tasks_are_acknowledged_while_another_drains(site: Site) -> None:
    first = site.worker(concurrency=2, vt=30)
    site.send("short", 1)
    site.send("long", 4)
    site.wait(lambda: len(site.begun()) == 2, 5, "begun")
    os.kill(first.pid, signal.SIGTERM)
    site.wait(lambda: site.done() == ["short"] and site.held() == 1, 3, "acknowledged at once")
    first.kill()


def test_idle_worker_ends_within_seconds(site: Site) -> None:
    first = site.worker()
    os.kill(first.pid, signal.SIGTERM)
    site.wait(lambda: not first.alive, 5, "ended")
    assert "Traceback" not in first.tail(1000)
