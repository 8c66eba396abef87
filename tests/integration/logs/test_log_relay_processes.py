"""Relays in processes of their own, killed and started: no line lost, none twice, none out of order."""

import time
from contextlib import closing

import pytest
from celery import Celery

from tests.integration.logs.log_site import Listener, LogSite, check_whole
from worker.sandbox.processes import wait_for

KILLS = 3


@pytest.mark.chaos
def test_relay_killed_again_and_again_loses_repeats_and_swaps_nothing(site: LogSite) -> None:
    # Given logs that print quickly and slowly, over both protocols, and a listener from the beginning
    fast = {f"12000-3000-0-succeeded-{number}": 12_000 for number in range(2)}
    slow = {f"300-60-0-succeeded-{number}": 300 for number in range(6)}
    for number, name in enumerate([*fast, *slow]):
        site.book("42", name, "websocket" if name in slow and number % 2 else "stream")
    with closing(Listener(site.redis, "42")) as listener:
        relays = [site.relay(), site.relay()]

        # When relays are killed while they publish
        for _ in range(KILLS):
            before = len(listener.entries)
            wait_for(lambda before=before: len(listener.entries) > before + 200 or over(site), 30, "lines")
            relays.pop(0).kill()
            relays.append(site.relay())

        # Then everybody has everything once, in its order
        wait_for(lambda: over(site), 60, "the end")
        check_whole(site.history("42"), fast | slow)
        wait_for(lambda: len(listener.entries) == len(site.history("42")), 10, "the listener")
        check_whole(listener.entries, fast | slow)


def test_another_worker_goes_on_within_ten_seconds_of_a_kill(site: LogSite) -> None:
    # Given a worker that consumes the queue, and a log that a bare message asked for
    first = site.worker()
    name = "3000-100-0-succeeded-a"
    with Celery(broker=site.server.url, set_as_current=False) as app:
        app.send_task("tail_logs", kwargs={"job": 42, "ray_job": name}, queue="logs")
    with closing(Listener(site.redis, "42")) as listener:
        wait_for(lambda: len(listener.entries) > 50, 20, "lines")
        site.relay()

        # When it is killed
        first.kill()
        killed, before = time.monotonic(), len(listener.entries)

        # Then the next line comes from the other one
        wait_for(lambda: len(listener.entries) > before + 1, 30, "takeover")
        assert time.monotonic() - killed < 10
        assert [entry["seq"] for entry in listener.entries] == list(range(1, len(listener.entries) + 1))


def test_relay_goes_on_when_the_agent_comes_back(site: LogSite) -> None:
    # Given a relay that follows logs
    names = {f"600-100-0-succeeded-{protocol}": 600 for protocol in ("stream", "websocket")}
    site.relay()
    for name in names:
        site.book("42", name, name.rpartition("-")[2])
    wait_for(lambda: len(site.history("42")) > 100, 20, "lines")

    # When the agent is killed and comes back
    assert site.agent is not None
    site.agent.kill()
    site.start_agent()

    # Then the logs are complete
    wait_for(lambda: over(site), 30, "the end")
    check_whole(site.history("42"), names)


@pytest.mark.chaos
def test_lines_of_a_fast_log_survive_a_restart_of_redis(site: LogSite) -> None:
    names = {"2000-500-0-succeeded-a": 2000}
    site.relay()
    site.book("42", *names)
    wait_for(lambda: len(site.history("42")) > 100, 20, "lines")

    site.server.restart()

    wait_for(lambda: over(site), 30, "the end")
    check_whole(site.history("42"), names)


def over(site: LogSite) -> bool:
    return site.end_of("42") is not None
