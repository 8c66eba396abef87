"""A killed worker loses no message, and what it had not acknowledged is redelivered in time."""

import random
import time
from collections import Counter, deque

import pytest

from tests.integration.broker.broker_harness import BrokerHarness

VISIBILITY_TIMEOUT_SECONDS = 2.0


@pytest.mark.parametrize(
    ("kills", "messages"),
    [(6, 500), pytest.param(200, 12_000, marks=[pytest.mark.chaos, pytest.mark.timeout(900)])],
)
def test_kills_under_load_lose_nothing(broker: BrokerHarness, kills: int, messages: int) -> None:
    workers = deque(
        broker.start_worker(visibility_timeout=VISIBILITY_TIMEOUT_SECONDS, wait_until_ready=False)
        for _ in range(3)
    )
    sent = kills_under_load = 0
    for kill in range(kills):
        until = messages * (kill + 1) // kills
        with broker.app.producer_or_acquire() as producer, producer.batch(max_size=50):
            for value in range(sent, until):
                broker.send(value, 0.002, queue=random.choice(["first", "second"]), producer=producer)
        sent = until
        worker = workers.popleft()
        broker.wait_for(lambda: broker.is_consuming(worker), 30, "start of the worker")  # noqa: B023 - called at once
        # A random moment of its work.
        time.sleep(random.random() * 0.1)
        kills_under_load += broker.unacked_count() > 0
        worker.kill()
        workers.append(
            broker.start_worker(visibility_timeout=VISIBILITY_TIMEOUT_SECONDS, wait_until_ready=False)
        )
    broker.wait_for(lambda: broker.is_empty(), 30 + messages / 50, "the end of all tasks")

    ends = Counter(broker.ended())
    assert set(ends) == {str(value) for value in range(messages)}, "lost"
    assert broker.dead_letters() == []
    repeated = sum(ends.values()) - messages
    print(f"{kills} kills, {kills_under_load} under load, {messages} messages, 0 lost, {repeated} repeated")


@pytest.mark.parametrize(
    "pool", ["threads", *(pytest.param(pool, marks=pytest.mark.chaos) for pool in ("prefork", "solo"))]
)
def test_killed_workers_message_is_redelivered_in_time(broker: BrokerHarness, pool: str) -> None:
    first = broker.start_worker(pool=pool, visibility_timeout=3)
    broker.send("long", 2)
    broker.wait_for(lambda: len(broker.started()) == 1, 5, "a start")
    first.kill()
    killed = time.time()
    broker.start_worker(visibility_timeout=3)
    broker.wait_for(lambda: len(broker.started()) == 2, 3 + 3, "the redelivery")

    (_, first_redelivered, first_start), (_, second_redelivered, second_start) = broker.started()
    assert (first_redelivered, second_redelivered) == ("False", "True")
    assert float(second_start) - float(first_start) >= 2.9, "before the visibility timeout"
    assert float(second_start) - killed < 3 + 15
    broker.wait_for(broker.is_empty, 5, "the acknowledgement")


def test_overdue_message_goes_to_one_of_many_workers(broker: BrokerHarness) -> None:
    worker = broker.start_worker(visibility_timeout=2)
    for value in range(4):
        broker.send(value, 30)
    broker.wait_for(lambda: len(broker.started()) == 4, 5, "a start")
    broker.redis.delete("a start")
    for _ in range(2):
        broker.start_worker(visibility_timeout=2, wait_until_ready=False)
    worker.kill()
    broker.wait_for(lambda: len(broker.started()) >= 4, 15, "the redelivery")
    broker.send("last", countdown=0.5)
    broker.wait_for(lambda: len(broker.started()) >= 5, 5, "a start")
    assert sorted(value for value, _, _ in broker.started()) == ["0", "1", "2", "3", "last"]


@pytest.mark.chaos
def test_countdown_above_the_visibility_timeout_runs_once(broker: BrokerHarness) -> None:
    broker.start_worker(visibility_timeout=2)
    broker.start_worker(visibility_timeout=2)
    broker.send("late", countdown=6)
    broker.wait_for(lambda: broker.ended() == ["late"], 9, "its end")
    broker.send("later", countdown=2.5)  # Later than a redelivered copy of the first would run.
    broker.wait_for(lambda: broker.ended() == ["late", "later"], 5, "its end")
    assert [redelivered for _, redelivered, _ in broker.started()] == ["False", "False"]
    broker.wait_for(broker.is_empty, 5, "the last acknowledgement")


def test_message_with_a_priority_is_found(broker: BrokerHarness) -> None:
    broker.start_worker()
    broker.send("important", priority=7)
    broker.wait_for(lambda: broker.ended() == ["important"], 3, "its end")
    assert [(value, redelivered) for value, redelivered, _ in broker.started()] == [("important", "False")]
