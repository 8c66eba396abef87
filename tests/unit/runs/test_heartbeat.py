"""Members whose heartbeat is overdue are found, each by one caller."""

import itertools
from collections.abc import Callable

from fakeredis import FakeRedis

from tests.unit.conftest import Clock
from worker.runs.heartbeat import Heartbeats
from worker.runs.runs import Runs

Eventually = Callable[[Callable[[], object]], None]


def test_member_is_overdue_after_the_grace_time(redis: FakeRedis, clock: Clock) -> None:
    live = Heartbeats(redis, grace_seconds=70)
    live.schedule("run:42")

    clock.forward(68)
    early = live.overdue()
    clock.forward(4)

    assert (early, live.overdue()) == ([], ["run:42"])


def test_extended_member_is_overdue_later_a_removed_one_never(redis: FakeRedis, clock: Clock) -> None:
    live = Heartbeats(redis, grace_seconds=70)
    live.schedule("run:42")
    live.extend("run:42", 5)
    live.extend("run:of-the-past", 5)

    clock.forward(72)
    early = live.overdue()
    clock.forward(5)

    assert (early, live.overdue()) == ([], ["run:42"])


def test_overdue_member_is_given_to_one_caller(redis: FakeRedis, clock: Clock) -> None:
    live = Heartbeats(redis, grace_seconds=70)
    live.schedule("run:42")
    clock.forward(72)

    assert [live.overdue(), live.overdue()] == [["run:42"], []]


def test_overdue_member_is_given_out_later_each_time(redis: FakeRedis, clock: Clock) -> None:
    live = Heartbeats(redis, grace_seconds=10)
    live.schedule("run:42")
    times: list[float] = []
    while len(times) < 9 and clock.ahead < 5000:
        clock.forward(1)
        if live.overdue():
            times.append(clock.time())

    gaps = [round(after - before, -1) for before, after in itertools.pairwise(times)]
    assert gaps == [20, 40, 80, 160, 320, 640, 640, 640]


def test_heartbeat_resets_the_count_of_an_overdue_member(redis: FakeRedis, clock: Clock) -> None:
    live = Heartbeats(redis, grace_seconds=10)
    live.schedule("run:42")
    for _ in range(4):
        clock.forward(200)
        live.overdue()
    live.schedule("run:42")
    clock.forward(12)
    assert live.overdue() == ["run:42"]
    clock.forward(22)

    assert live.overdue() == ["run:42"]


def test_removed_member_is_not_overdue(redis: FakeRedis, clock: Clock) -> None:
    live = Heartbeats(redis, grace_seconds=10)
    live.schedule("run:42")
    live.remove("run:42")
    clock.forward(100)

    assert live.overdue() == []


def test_a_renewal_does_not_bring_a_later_heartbeat_forward(runs: Runs, clock: Clock) -> None:
    # Given a run that begins to wait for long, just as its step's lock is renewed
    runs.heartbeats.schedule("run:1", 180)
    runs.heartbeats.renew("run:1")

    # Then it is overdue when the wait is, and not before
    clock.forward(170)
    assert runs.heartbeats.overdue() == []
    clock.forward(90)
    assert runs.heartbeats.overdue() == ["run:1"]


def test_a_renewal_is_a_heartbeat(runs: Runs, clock: Clock) -> None:
    runs.heartbeats.schedule("run:1")
    clock.forward(runs.timing.heartbeat_grace_seconds - 1)
    runs.heartbeats.renew("run:1")
    clock.forward(5)
    assert runs.heartbeats.overdue() == []
