"""Half of the threads for a neighbour, and no more."""

from contextlib import ExitStack

from worker.runs.bulkhead import LATEST, SECONDS_BETWEEN_TRIES, SOONEST, Turns


def test_a_neighbour_gets_half_of_the_threads() -> None:
    turns = Turns(lambda: 4)
    with turns.take("cluster") as first, turns.take("cluster") as second, turns.take("cluster") as third:
        assert (first, second, third) == (True, True, False)
        with turns.take("backend") as other:
            assert other, "each neighbour has turns of its own"


def test_a_turn_is_free_when_its_block_ends_also_by_an_error() -> None:
    turns = Turns(lambda: 2)
    try:
        with turns.take("cluster") as mine:
            assert mine
            raise RuntimeError
    except RuntimeError:
        pass
    with turns.take("cluster") as mine:
        assert mine
        with turns.take("cluster") as second:
            assert not second
    with turns.take("cluster") as mine:
        assert mine, "who got no turn gave none back"


def test_a_single_thread_always_has_a_turn() -> None:
    for threads in (1, 0):
        with Turns(lambda: threads).take("cluster") as mine:  # noqa: B023 - called at once
            assert mine


def test_who_found_no_turn_comes_back_soon_and_later_each_time_but_within_seconds() -> None:
    def waits(tries: int) -> list[float]:
        return [Turns(lambda: 4).countdown("cluster", tries) for _ in range(100)]

    firsts, seconds, lasts = waits(0), waits(1), waits(10_000)
    assert all(SOONEST / 2 <= first <= SOONEST for first in firsts)
    assert all(SOONEST <= second <= 2 * SOONEST for second in seconds)
    assert all(LATEST / 2 <= last <= LATEST for last in lasts)


def test_many_who_find_no_turn_are_spread() -> None:
    turns = Turns(lambda: 4)
    waits = [turns.countdown("cluster", 0) for _ in range(1_000)]
    assert 0.9 * 1_000 * SECONDS_BETWEEN_TRIES < max(waits) <= 1_000 * SECONDS_BETWEEN_TRIES
    assert turns.countdown("backend", 0) <= SOONEST, "those of another neighbour are not in the way"


def test_all_turns_together_leave_a_thread_to_what_is_short() -> None:
    turns = Turns(lambda: 4)
    with ExitStack() as stack:
        taken = [stack.enter_context(turns.take("annotate", all_but_one=True)) for _ in range(5)]
        assert taken == [True, True, True, False, False]
        # But nobody is shut out altogether.
        assert stack.enter_context(turns.take("cluster"))
        assert not stack.enter_context(turns.take("cluster"))
