"""Of many idle consumers one is woken for a message; the loss of any of them delays it by seconds at most."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from kombu import Consumer, Queue
from kombu.asynchronous import Hub
from redis import Redis

from tests.integration.broker.broker_harness import BrokerHarness
from worker.broker import Connection
from worker.broker.keys import delayed_key, tokens_key, watcher_key

CONSUMERS = 50
LEASE_AND_WAIT_SECONDS = 1.5 + 2.5


class IdleConsumers:
    """Consumers of the same two queues in one event loop, each with a connection of its own."""

    def __init__(self, url: str) -> None:
        self.connections = [Connection(url) for _ in range(CONSUMERS)]
        self.received: list[list[Any]] = [[] for _ in self.connections]
        self._hub = Hub()
        for connection, received in zip(self.connections, self.received, strict=True):
            Consumer(
                connection,
                [Queue("first"), Queue("second")],
                callbacks=[lambda _body, message, received=received: received.append(message)],
                prefetch_count=1,
            ).consume()
            connection.register_with_event_loop(self._hub)
        self._loop = self._hub.create_loop()

    def run_until(self, condition: Any, seconds: float = 30) -> float:
        """Let the consumers work until `condition` holds; returns after how many seconds it did."""
        started = time.monotonic()
        self._hub.call_repeatedly(0.02, lambda: None)
        while not condition():
            assert time.monotonic() < started + seconds, "time is up"
            next(self._loop)
        return time.monotonic() - started

    def count(self) -> int:
        """Messages received by all."""
        return sum(map(len, self.received))

    def close(self) -> None:
        self._hub.close()
        for connection in self.connections:
            connection.close()


@contextmanager
def idle_consumers(broker: BrokerHarness) -> Iterator[IdleConsumers]:
    consumers = IdleConsumers(broker.server.url)
    try:
        consumers.run_until(
            lambda: broker.redis.info("clients")["blocked_clients"] == CONSUMERS - 1, seconds=60
        )
        yield consumers
    finally:
        consumers.close()


def calls(redis: Redis, *commands: str) -> int:
    stats = redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"] for command in commands)


def test_message_wakes_at_most_two_of_fifty_consumers(broker: BrokerHarness) -> None:
    with idle_consumers(broker) as consumers:
        broker.redis.config_resetstat()
        for number in range(1, 6):
            broker.send(number, queue="second")
            consumers.run_until(lambda number=number: consumers.count() == number)
        # A consumer that is free fetches and watches; with one message it is not, and another one watches.
        looks = calls(broker.redis, "evalsha", "eval")
        waits = calls(broker.redis, "blpop")
    # Beside those that look because they have waited for long, of which there are some in a second.
    assert looks <= 2 * 5 + CONSUMERS, f"{looks} scripts"
    assert waits <= 5 + CONSUMERS, f"{waits} waits"


def test_burst_is_handled_by_all_idle_consumers(broker: BrokerHarness) -> None:
    with idle_consumers(broker) as consumers:
        for value in range(CONSUMERS):
            broker.send(value)

        # No consumer acknowledges its message, so that each can have one.
        consumers.run_until(lambda: consumers.count() == CONSUMERS)

        assert [len(received) for received in consumers.received] == [1] * CONSUMERS


def test_lost_token_delays_a_message_by_seconds(broker: BrokerHarness) -> None:
    queues = ("first", "second")
    with idle_consumers(broker) as consumers:
        # Given no watcher, and a token that whoever took it has lost
        broker.redis.delete(watcher_key(queues))
        channels = [connection.default_channel for connection in consumers.connections]
        (watcher,) = (channel for channel in channels if channel.idle_until > time.monotonic() - 1)
        watcher.idle_until = time.monotonic() + 60
        watcher._listener.untrack(watcher.client.connection)
        assert not broker.redis.exists(tokens_key(queues))
        broker.send("x")

        # Then another consumer looks in time
        assert consumers.run_until(lambda: consumers.count() == 1) < LEASE_AND_WAIT_SECONDS + 5


def test_killed_watcher_is_replaced(broker: BrokerHarness) -> None:
    # Given a worker that watches, and one that waits
    first = broker.start_worker()
    key = watcher_key(("first", "second"))
    broker.wait_for(lambda: broker.redis.get(key), 5, "a watcher")
    watcher = broker.redis.get(key)
    broker.start_worker()
    assert broker.redis.get(key) == watcher

    # When the watcher dies
    first.kill()
    published = time.time()
    broker.send("x")

    # Then the other one runs the next task, and watches
    broker.wait_for(lambda: broker.ended() == ["x"], LEASE_AND_WAIT_SECONDS, "the task")
    assert float(broker.started()[0][2]) - published < LEASE_AND_WAIT_SECONDS + 5
    broker.wait_for(lambda: broker.redis.get(key) not in (None, watcher), 5, "another watcher")


def test_workers_share_a_burst(broker: BrokerHarness) -> None:
    for _ in range(3):
        broker.start_worker(concurrency=2)
    for value in range(6):
        broker.send(value, 3)
    # Six tasks of three seconds on six threads: none waits for another's end.
    broker.wait_for(lambda: len(broker.started()) == 6, 2, "all starts")
    starts = [float(start) for _, _, start in broker.started()]
    assert max(starts) - min(starts) < 3


@pytest.mark.parametrize("workers", [1, 3])
def test_due_message_is_moved_at_its_time_while_all_are_idle(broker: BrokerHarness, workers: int) -> None:
    for _ in range(workers):
        broker.start_worker()
    delays = []
    for number in range(5):
        due = time.time() + 0.73
        broker.send(number, countdown=0.73)
        broker.wait_for(lambda number=number: len(broker.started()) == number + 1, 5, "its start")
        delays.append(float(broker.started()[-1][2]) - due)
    assert min(delays) > -0.01, "before its time"
    assert min(delays) < 0.2, f"all late: {delays}"
    assert broker.is_empty() or broker.unacked_count()


def test_earlier_message_is_moved_before_a_later_one(broker: BrokerHarness) -> None:
    broker.start_worker()
    broker.send("late", countdown=3)
    broker.wait_for(lambda: broker.delayed_count() == 1, 5, "a delayed message")
    broker.send("early", countdown=0.5)
    broker.wait_for(lambda: len(broker.ended()) == 2, 6, "both")
    assert broker.ended() == ["early", "late"]


@pytest.mark.parametrize("pool", ["threads", "prefork"])
@pytest.mark.parametrize("amqp", ["celery.app.amqp:AMQP", "worker.broker:AMQP"])
def test_task_reads_the_eta_of_its_message(broker: BrokerHarness, amqp: str, pool: str) -> None:
    # Given a worker, and a publisher on kombu's transport or on the worker's own
    broker.start_worker(pool=pool)
    publisher = Celery("publisher", broker=broker.url, amqp=amqp, set_as_current=False)
    publisher.conf.update(task_ignore_result=True)
    due = datetime.now(UTC) + timedelta(seconds=0.5)

    # When it publishes a task with an ETA
    with publisher:
        publisher.send_task("record", ["x"], queue="first", eta=due)

    # Then the task reads it, as on kombu's transport, although Redis has honoured it
    broker.wait_for(lambda: broker.ended() == ["x"], 5, "its end")
    assert broker.redis.lrange("etas", 0, -1) == [due.isoformat()]


def test_countdown_of_a_bare_publisher_survives_its_worker(broker: BrokerHarness) -> None:
    # Given a message with a countdown, published by stock kombu and fetched by a worker
    first = broker.start_worker(visibility_timeout=30)
    due = time.time() + 3
    broker.send("x", countdown=3)
    broker.wait_for(lambda: broker.delayed_count() == 1, 5, "a delayed message")
    assert broker.unacked_count() == broker.redis.llen("first") == 0
    ((_, score),) = broker.redis.zrange(delayed_key("first"), 0, -1, withscores=True)
    assert abs(score - due) < 1

    # When the worker is killed
    first.kill()
    broker.start_worker(visibility_timeout=30)

    # Then another one runs it at its time, as a first delivery
    broker.wait_for(lambda: broker.ended() == ["x"], 6, "its end")
    ((_, redelivered, start),) = broker.started()
    assert due - 0.01 < float(start) < due + 15
    assert redelivered == "False"
    broker.wait_for(broker.is_empty, 5, "the acknowledgement")


def test_delivery_carries_its_count(broker: BrokerHarness) -> None:
    for number in range(3):
        worker = broker.start_worker(visibility_timeout=2)
        if not number:
            broker.send("x", 60)
        broker.wait_for(lambda number=number: len(broker.started()) == number + 1, 10, "its start")
        worker.kill()
    assert broker.redis.lrange("deliveries", 0, -1) == ["1", "2", "3"]


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_queue_whose_share_is_taken_is_not_fetched_from(broker: BrokerHarness, pool: str) -> None:
    # Given a worker of five threads, two of which work on a queue that may have two
    broker.start_worker(pool=pool, concurrency=5, queues="first,annotate")
    for number in range(5):
        broker.send(number, 60, queue="annotate")
    broker.wait_for(lambda: len(broker.started()) == 2, 5, "two tasks")

    # When a message comes to another queue
    broker.send("other", queue="first")

    # Then it is run, and the others are still in their queue
    broker.wait_for(lambda: broker.ended() == ["other"], 5, "the task of the other queue")
    assert broker.redis.llen("annotate") == 3
    assert broker.unacked_count() <= 3, "the two, and the other's acknowledgement may be under way"


def test_queue_is_fetched_from_as_soon_as_its_share_is_free(broker: BrokerHarness) -> None:
    # Given two consumers, so that the one that may not fetch waits for a token and not for the clock
    broker.start_worker(queues="first,annotate")
    broker.start_worker(queues="first,annotate")
    started = time.monotonic()
    for number in range(40):
        broker.send(number, 0.2, queue="annotate")
    broker.wait_for(lambda: len(broker.ended()) == 40, 10, "all ends")
    # Ten times four of them take two seconds; each wait for the clock would take 1.5 more.
    assert time.monotonic() - started < 10
    broker.wait_for(broker.is_empty, 5, "the acknowledgements")
