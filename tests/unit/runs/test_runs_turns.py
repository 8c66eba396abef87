"""Half of the threads for a neighbour, and no more."""

from contextlib import ExitStack

from worker.runs.turns import LATEST, SOONEST, Turns, countdown


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
    firsts, seconds, lasts = ([countdown(tries) for _ in range(100)] for tries in (0, 1, 10_000))
    assert all(SOONEST / 2 <= first <= SOONEST for first in firsts)
    assert all(SOONEST <= second <= 2 * SOONEST for second in seconds)
    assert all(LATEST / 2 <= last <= LATEST for last in lasts)


def test_all_turns_together_leave_a_thread_to_what_is_short() -> None:
    turns = Turns(lambda: 4)
    with ExitStack() as stack:
        taken = [stack.enter_context(turns.take("annotate", all_but_one=True)) for _ in range(5)]
        assert taken == [True, True, True, False, False]
        # But nobody is shut out altogether.
        assert stack.enter_context(turns.take("cluster"))
        assert not stack.enter_context(turns.take("cluster"))
