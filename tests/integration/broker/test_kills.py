"""A worker may die at any moment: nothing is lost, and what it held is redelivered in time."""

import random
import time
from collections import Counter, deque

import pytest

from tests.integration.broker.broker_site import Site

VT = 2.0


@pytest.mark.parametrize(
    ("kills", "messages"),
    [(6, 500), pytest.param(200, 12_000, marks=[pytest.mark.chaos, pytest.mark.timeout(900)])],
)
def test_kills_under_load_lose_nothing(site: Site, kills: int, messages: int) -> None:
    victims = deque(site.worker(vt=VT, ready=False) for _ in range(3))
    sent = held_at_kill = 0
    for kill in range(kills):
        until = messages * (kill + 1) // kills
        with site.app.producer_or_acquire() as producer, producer.batch(max_size=50):
            for value in range(sent, until):
                site.send(value, 0.002, queue=random.choice(["first", "second"]), producer=producer)
        sent = until
        victim = victims.popleft()
        site.wait(lambda: site.takes_messages(victim), 30, "the victim is up")  # noqa: B023 - called at once
        time.sleep(random.random() * 0.1)
        held_at_kill += site.held() > 0
        victim.kill()
        victims.append(site.worker(vt=VT, ready=False))
    site.wait(lambda: site.quiet(), 30 + messages / 50, "everything done")

    done = Counter(site.done())
    assert set(done) == {str(value) for value in range(messages)}, "lost"
    assert site.letters() == []
    again = sum(done.values()) - messages
    print(f"{kills} kills, {held_at_kill} under load, {messages} messages, 0 lost, {again} done again")


@pytest.mark.parametrize("pool", ["threads", "prefork", pytest.param("solo", marks=pytest.mark.chaos)])
def test_killed_workers_message_is_redelivered_in_time(site: Site, pool: str) -> None:
    first = site.worker(pool=pool, vt=3)
    site.send("long", 2)
    site.wait(lambda: len(site.begun()) == 1, 5, "begun")
    first.kill()
    killed = time.time()
    site.worker(vt=3)
    site.wait(lambda: len(site.begun()) == 2, 3 + 3, "redelivered")

    (_, once, began), (_, again, back) = site.begun()
    assert (once, again) == ("False", "True")
    assert float(back) - float(began) >= 2.9, "not before its time"
    assert float(back) - killed < 3 + 15
    site.wait(site.quiet, 5, "acknowledged")


def test_overdue_message_goes_to_one_of_many_workers(site: Site) -> None:
    victim = site.worker(vt=2)
    for value in range(4):
        site.send(value, 30)
    site.wait(lambda: len(site.begun()) == 4, 5, "begun")
    site.redis.delete("begun")
    for _ in range(2):
        site.worker(vt=2, ready=False)
    victim.kill()
    site.wait(lambda: len(site.begun()) >= 4, 15, "redelivered")
    site.send("last", countdown=0.5)
    site.wait(lambda: len(site.begun()) >= 5, 5, "begun")
    assert sorted(value for value, _, _ in site.begun()) == ["0", "1", "2", "3", "last"]


def test_countdown_above_the_visibility_timeout_runs_once(site: Site) -> None:
    site.worker(vt=2)
    site.worker(vt=2)
    site.send("late", countdown=6)
    site.wait(lambda: site.done() == ["late"], 9, "done")
    site.send("later", countdown=2.5)  # longer than another copy would take
    site.wait(lambda: site.done() == ["late", "later"], 5, "done")
    assert [redelivered for _, redelivered, _ in site.begun()] == ["False", "False"]
    assert site.quiet()


def test_message_with_a_priority_is_found(site: Site) -> None:
    site.worker()
    site.send("important", priority=7)
    site.wait(lambda: site.done() == ["important"], 3, "done")
    assert [(value, redelivered) for value, redelivered, _ in site.begun()] == [("important", "False")]
