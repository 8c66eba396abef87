"""The ends of runs are heard through a subscription in a real Redis."""

from collections.abc import Iterator

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from shared.channels import events_channel
from shared.messages import DeployMessage
from shared.statuses import JobStatus
from tests.integration.broker.broker_harness import BrokerHarness
from worker.runs.ends import RunEnds
from worker.runs.model import End
from worker.runs.store import RunStore
from worker.to_task.clients import EventLoopThread


@pytest.fixture
def loop() -> Iterator[EventLoopThread]:
    loop = EventLoopThread()
    yield loop
    loop.close()


@pytest.fixture
def ends(broker: BrokerHarness, loop: EventLoopThread) -> Iterator[RunEnds]:
    ends = RunEnds(loop.call, lambda: AsyncRedis.from_url(broker.url, decode_responses=True))
    yield ends
    loop.run(ends.aclose(), 5)


@pytest.fixture
def store(broker: BrokerHarness) -> Iterator[RunStore]:
    """Three runs: 1, 2 and 3."""
    with Redis.from_url(broker.url, decode_responses=True) as redis:
        store = RunStore(redis)
        for job in (1, 2, 3):
            store.accept(DeployMessage.model_validate({"job": job, "plugin": "p@1", "agent": 1}), "deploy")
        yield store


def subscribers(broker: BrokerHarness) -> int:
    """Connections that are subscribed to something."""
    return len(broker.redis.client_list(_type="pubsub"))


def test_an_end_is_heard_by_all_who_watch_its_run(
    broker: BrokerHarness, ends: RunEnds, store: RunStore
) -> None:
    with ends.watching("1") as first, ends.watching("1") as second, ends.watching("2") as other:
        broker.wait_for(lambda: None not in (first.heard_since, other.heard_since), 5, "subscriptions")
        store.finish("1", End(JobStatus.STOPPED, {"error": "stopped"}))
        broker.wait_for(lambda: first.heard, 5, "the end")
        assert (second.heard, other.heard) == (True, False)
        assert subscribers(broker) == 1


def test_a_run_that_is_watched_again_is_heard_again(
    broker: BrokerHarness, ends: RunEnds, store: RunStore
) -> None:
    with ends.watching("2"):
        for _ in range(20):
            with ends.watching("1") as end:
                pass
        with ends.watching("1") as end:
            broker.wait_for(lambda: end.heard_since is not None, 5, "a subscription")
            store.finish("1", End(JobStatus.FAILED, {"error": "no"}))
            broker.wait_for(lambda: end.heard, 5, "the end")


def test_what_is_said_before_the_end_is_no_end(broker: BrokerHarness, ends: RunEnds, store: RunStore) -> None:
    began = '{"type": "state", "status": "RUNNING"}'
    with ends.watching("1") as end:
        broker.wait_for(lambda: end.heard_since is not None, 5, "a subscription")
        for event in (began, '{"type": "log", "line": "x"}', "[]", "<html>", "[" * 100_000):
            broker.redis.publish(events_channel("1"), event)
        store.finish("1", End(JobStatus.SUCCEEDED, {}))
        broker.wait_for(lambda: end.heard, 5, "the end")


def test_an_event_that_is_no_text_costs_no_later_end(
    broker: BrokerHarness, ends: RunEnds, store: RunStore
) -> None:
    with ends.watching("1") as end:
        broker.wait_for(lambda: end.heard_since is not None, 5, "a subscription")
        before = end.heard_since
        broker.redis.publish(events_channel("1"), b"\xff\xfe")
        broker.wait_for(lambda: end.heard_since not in (None, before), 10, "a new subscription")
        store.finish("1", End(JobStatus.STOPPED, {"error": "stopped"}))
        broker.wait_for(lambda: end.heard, 5, "the end")


def test_nobody_is_subscribed_while_nothing_is_watched(
    broker: BrokerHarness, ends: RunEnds, store: RunStore
) -> None:
    with ends.watching("1") as end:
        broker.wait_for(lambda: end.heard_since is not None, 5, "a subscription")
    broker.wait_for(lambda: subscribers(broker) == 0, 5, "the end of the subscription")


def test_ends_are_heard_again_after_an_outage(broker: BrokerHarness, ends: RunEnds, store: RunStore) -> None:
    with ends.watching("1") as end:
        broker.wait_for(lambda: end.heard_since is not None, 5, "a subscription")
        before = end.heard_since

        # When the connection is lost
        broker.redis.client_kill_filter(_type="pubsub")

        # Then what is heard counts from the new subscription only
        broker.wait_for(lambda: end.heard_since not in (None, before), 10, "a new subscription")
        store.finish("1", End(JobStatus.STOPPED, {"error": "stopped"}))
        broker.wait_for(lambda: end.heard, 5, "the end")
