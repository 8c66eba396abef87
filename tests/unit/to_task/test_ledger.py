"""The ledger: every task counts once, every chunk is handed out, finalize is found by whoever is last."""

from collections.abc import Callable

import pytest
from fakeredis import FakeRedis

from tests.unit.conftest import Clock
from tests.unit.to_task.world import JOB, World
from worker.to_task.direct import MemoryLedger
from worker.to_task.ledger import Counts, Ledger, OpenTask, RedisLedger, TaskOutcome, Ticket, open_key

Make = Callable[..., World]


@pytest.fixture(params=["redis", "memory"])
def ledger(request: pytest.FixtureRequest, make_world: Make) -> Ledger:
    """Five tasks, 1 to 5, in chunks of three."""
    if request.param == "memory":
        return MemoryLedger([1, 2, 3, 4, 5], 3)
    world = make_world(5, chunk=3)
    world.collect_ids()
    return world.ledger


def test_a_chunk_lists_its_tasks_with_their_place_in_the_run(ledger: Ledger) -> None:
    assert ledger.open_tasks(0) == [OpenTask(0, 1), OpenTask(1, 2), OpenTask(2, 3)]
    assert ledger.open_tasks(1) == [OpenTask(3, 4), OpenTask(4, 5)]
    assert ledger.open_tasks(2) == []


def test_what_is_recorded_is_not_open_any_more(ledger: Ledger) -> None:
    assert ledger.record([TaskOutcome(0, 1), TaskOutcome(2, 3, "broken")])

    assert ledger.open_tasks(0) == [OpenTask(1, 2)]


def test_a_task_counts_once_however_often_it_is_recorded(ledger: Ledger) -> None:
    ledger.record([TaskOutcome(0, 1), TaskOutcome(1, 2, "broken")])
    ledger.record(
        [TaskOutcome(0, 1), TaskOutcome(0, 1, "late"), TaskOutcome(1, 2, "again"), TaskOutcome(1, 2)]
    )

    assert ledger.counts() == Counts(success=1, failed=1, total=5)
    assert [(each.task_id, each.error) for each in ledger.failures()] == [(2, "broken")]


def test_attempts_are_counted_by_task(ledger: Ledger) -> None:
    assert ledger.increment_attempts([0, 1]) == [1, 1]
    assert ledger.increment_attempts([1]) == [2]

    assert [task.attempts for task in ledger.open_tasks(0)] == [1, 2, 0]


def test_a_ticket_is_kept_until_it_is_collected(ledger: Ledger) -> None:
    ledger.set_ticket(1, Ticket("abc", 9))
    assert [task.ticket for task in ledger.open_tasks(0)] == [None, Ticket("abc", 9), None]

    ledger.set_ticket(1, None)
    assert [task.ticket for task in ledger.open_tasks(0)] == [None, None, None]


def test_a_chunk_keeps_to_single_calls(ledger: Ledger) -> None:
    assert not ledger.has_single_calls(1)

    ledger.begin_single_calls(1)

    assert (ledger.has_single_calls(0), ledger.has_single_calls(1)) == (False, True)


def test_failures_in_a_row_are_those_of_one_operation(ledger: Ledger) -> None:
    assert [ledger.count_plugin_failure("convert"), ledger.count_plugin_failure("convert")] == [1, 2]
    ledger.reset_plugin_failures("prepare")
    assert [ledger.count_plugin_failure("convert"), ledger.count_plugin_failure("prepare")] == [3, 1]

    ledger.reset_plugin_failures("convert")

    assert [ledger.count_plugin_failure("convert"), ledger.count_plugin_failure("prepare")] == [1, 2]


def test_failures_are_capped_and_counted_exactly(redis: FakeRedis, make_world: Make) -> None:
    world = make_world(1200, chunk=2000)
    world.collect_ids()
    memory = MemoryLedger(range(1, 1201), 2000)
    marks = [TaskOutcome(position, position + 1, "broken") for position in range(1200)]

    for ledger in (world.ledger, memory):
        ledger.record(marks)

        assert ledger.counts() == Counts(success=0, failed=1200, total=1200)
        assert [each.task_id for each in ledger.failures()] == list(range(1, 1001))


def test_nothing_is_recorded_after_the_end(make_world: Make) -> None:
    world = make_world(3)
    world.collect()
    world.end()
    keys_before = set(world.redis.keys("*"))

    assert world.ledger.record([TaskOutcome(0, 1)]) is False
    world.ledger.set_ticket(0, Ticket("abc"))
    world.ledger.begin_single_calls(0)
    assert world.ledger.increment_attempts([0]) == []
    assert world.ledger.count_plugin_failure("convert") == 0
    assert world.ledger.complete_chunk(0) is False
    assert world.ledger.next_chunks(4, 10) == []

    assert world.ledger.counts().success == 0
    assert set(world.redis.keys("*")) == keys_before


def publish(ledger: RedisLedger, numbers: list[int]) -> list[int]:
    """Mark what was handed out as published."""
    for number in numbers:
        ledger.mark_published(number)
    return numbers


def test_a_chunk_that_begins_lets_another_wait(make_world: Make) -> None:
    world = make_world(60, chunk=10)
    world.collect_ids()
    ledger = world.ledger

    assert publish(ledger, ledger.next_chunks(2, 10)) == [0, 1]
    assert ledger.next_chunks(2, 10) == []
    assert publish(ledger, ledger.next_chunks(2, 10, begun=1)) == [2]
    assert ledger.next_chunks(2, 10, begun=1) == [], "it begins once"
    assert publish(ledger, ledger.next_chunks(2, 10, begun=0)) == [3]
    ledger.complete_chunk(0)
    assert ledger.next_chunks(2, 10) == [], "two are still waiting"


def test_a_chunk_that_begins_before_its_mark_has_begun(make_world: Make) -> None:
    world = make_world(60, chunk=10)
    world.collect_ids()
    ledger = world.ledger
    assert ledger.next_chunks(1, 10) == [0]

    assert ledger.next_chunks(1, 10, begun=0) == [1]
    ledger.mark_published(0)

    assert ledger.next_chunks(1, 10) == []


def test_no_more_chunks_are_in_flight_than_allowed(make_world: Make) -> None:
    world = make_world(60, chunk=10)
    world.collect_ids()
    ledger = world.ledger

    assert ledger.next_chunks(2, 3) == [0, 1]
    assert ledger.next_chunks(2, 3, begun=0) == [2]
    assert ledger.next_chunks(2, 3, begun=1) == []
    ledger.complete_chunk(1)
    assert ledger.next_chunks(2, 3) == [3]


def test_more_chunks_wait_the_more_have_begun(make_world: Make) -> None:
    # Given a run on which many processes work
    world = make_world(200, chunk=10)
    world.collect_ids()
    ledger = world.ledger
    published = ledger.next_chunks(1, 100)
    for begun in range(11):
        published += ledger.next_chunks(1, 100, begun=begun)

    # Then one waits for each four that have begun
    assert published == list(range(11 + 2))


def test_a_window_of_an_older_release_is_gone_on_with(make_world: Make) -> None:
    # Given chunks in flight as a worker of an older release marks them
    world = make_world(60, chunk=10)
    world.collect_ids()
    ledger = world.ledger
    for chunk in ledger.next_chunks(4, 4):
        world.redis.zadd(open_key(JOB), {str(chunk): float("inf")})

    # When one of them begins, and when it is done
    assert ledger.next_chunks(2, 10, begun=0) == [4, 5]
    ledger.complete_chunk(0)

    # Then the others are not handed out again
    assert ledger.next_chunks(2, 10) == []


def test_a_claimed_unpublished_chunk_is_claimed_again(clock: Clock, make_world: Make) -> None:
    # Given chunks that were handed out to somebody who died after sending one of them
    world = make_world(60, chunk=10)
    world.collect_ids()
    assert world.ledger.next_chunks(2, 10) == [0, 1]
    world.ledger.mark_published(0)

    # When somebody asks later
    assert world.ledger.next_chunks(2, 10) == []
    clock.forward(6)

    # Then the other is handed out again
    assert world.ledger.next_chunks(2, 10) == [1]


def test_all_open_chunks_can_be_asked_for(make_world: Make) -> None:
    world = make_world(60, chunk=10)
    world.collect_ids()
    publish(world.ledger, world.ledger.next_chunks(3, 10))
    world.ledger.next_chunks(2, 10, begun=0)
    world.ledger.complete_chunk(1)

    assert sorted(world.ledger.next_chunks(3, 10, resend=True)) == [0, 2, 3]


def test_all_are_done_with_the_last_chunk_and_afterwards(make_world: Make) -> None:
    world = make_world(30, chunk=10)
    world.collect_ids()

    assert [world.ledger.complete_chunk(chunk) for chunk in (0, 2, 2)] == [False, False, False]
    assert world.ledger.is_complete() is False
    assert [world.ledger.complete_chunk(chunk) for chunk in (1, 1, 0)] == [True, True, True]
    assert world.ledger.is_complete() is True


def test_a_chunk_that_does_not_exist_completes_nothing(make_world: Make) -> None:
    world = make_world(10, chunk=10)
    world.collect_ids()

    assert world.ledger.complete_chunk(99) is False
    assert world.redis.exists(f"synapse:jobs:{{{JOB}}}:to_task:done_chunks") == 0
