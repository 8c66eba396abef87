"""Relays in processes of their own, killed and started: no line is lost, repeated or out of order."""

import time
from contextlib import closing

import pytest
from celery import Celery

from tests.integration.logs.log_relay_harness import ChannelListener, LogRelayHarness, check_complete
from worker.sandbox.processes import wait_for

KILLS = 3


@pytest.mark.chaos
def test_killed_relays_lose_repeat_and_reorder_no_line(harness: LogRelayHarness) -> None:
    # Given fast and slow logs over both protocols, and a listener from the start
    fast = {f"12000-3000-0-succeeded-{number}": 12_000 for number in range(2)}
    slow = {f"300-60-0-succeeded-{number}": 300 for number in range(6)}
    for number, name in enumerate([*fast, *slow]):
        harness.subscribe("42", name, "websocket" if name in slow and number % 2 else "stream")
    with closing(ChannelListener(harness.redis, "42")) as listener:
        relays = [harness.start_relay(), harness.start_relay()]

        # When relays are killed while they write
        for _ in range(KILLS):
            before = len(listener.entries)
            wait_for(
                lambda before=before: len(listener.entries) > before + 200 or is_closed(harness), 30, "lines"
            )
            relays.pop(0).kill()
            relays.append(harness.start_relay())

        # Then the history and the listener have every line once, in order
        wait_for(lambda: is_closed(harness), 60, "the end")
        check_complete(harness.history("42"), fast | slow)
        wait_for(lambda: len(listener.entries) == len(harness.history("42")), 10, "the listener")
        check_complete(listener.entries, fast | slow)


def test_another_relay_takes_over_ten_seconds_after_a_kill(harness: LogRelayHarness) -> None:
    # Given a worker that consumes the queue, and a log that a Celery message subscribed to
    first = harness.start_worker()
    name = "3000-100-0-succeeded-a"
    with Celery(broker=harness.redis_server.url, set_as_current=False) as app:
        app.send_task("tail_logs", kwargs={"job": 42, "ray_job": name}, queue="logs")
    with closing(ChannelListener(harness.redis, "42")) as listener:
        wait_for(lambda: len(listener.entries) > 50, 20, "lines")
        harness.start_relay()

        # When it is killed
        first.kill()
        killed, before = time.monotonic(), len(listener.entries)

        # Then the other relay writes the next line
        wait_for(lambda: len(listener.entries) > before + 1, 30, "takeover")
        assert time.monotonic() - killed < 10
        assert [entry["seq"] for entry in listener.entries] == list(range(1, len(listener.entries) + 1))


@pytest.mark.chaos
def test_relay_continues_when_the_agent_is_restarted(harness: LogRelayHarness) -> None:
    # Given a relay that tails logs
    names = {f"600-100-0-succeeded-{protocol}": 600 for protocol in ("stream", "websocket")}
    harness.start_relay()
    for name in names:
        harness.subscribe("42", name, name.rpartition("-")[2])
    wait_for(lambda: len(harness.history("42")) > 100, 20, "lines")

    # When the agent is killed and started again
    assert harness.agent is not None
    harness.agent.kill()
    harness.start_agent()

    # Then the logs are complete
    wait_for(lambda: is_closed(harness), 30, "the end")
    check_complete(harness.history("42"), names)


@pytest.mark.chaos
def test_lines_of_a_fast_log_survive_a_restart_of_redis(harness: LogRelayHarness) -> None:
    names = {"2000-500-0-succeeded-a": 2000}
    harness.start_relay()
    harness.subscribe("42", *names)
    wait_for(lambda: len(harness.history("42")) > 100, 20, "lines")

    harness.redis_server.restart()

    wait_for(lambda: is_closed(harness), 30, "the end")
    check_complete(harness.history("42"), names)


def is_closed(harness: LogRelayHarness) -> bool:
    return harness.end_reason("42") is not None
