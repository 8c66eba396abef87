"""The requests of an application that the runs which annotate with it share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from fakeredis import FakeRedis

from tests.unit.conftest import Clock
from worker.pre_processor.shared_requests import COUNTED_SECONDS, SharedRequests, taken_key
from worker.pre_processor.waitlist import WaitlistName
from worker.runs.locks import Locks

DIGITS = WaitlistName("acme", 3, "digits", "1.0.0")


class RecordingLocks(Locks):
    """Renews when it is asked to."""

    def __init__(self) -> None:
        self.renewals: list[Callable[[], None]] = []

    @contextmanager
    def repeating(self, function: Callable[[], None]) -> Iterator[None]:
        self.renewals.append(function)
        yield


LOCKS = RecordingLocks()


@pytest.fixture
def requests(redis: FakeRedis) -> SharedRequests:
    return SharedRequests(redis, DIGITS)


def shares(requests: SharedRequests, runs: int, wanted: int = 5) -> list[int]:
    """What each of so many runs gets in its second pass, once all have begun one."""
    with ExitStack() as stack:
        for number in range(runs):
            stack.enter_context(requests.share(str(number), wanted, LOCKS))
        return [stack.enter_context(requests.share(str(number), wanted, LOCKS)) for number in range(runs)]


@pytest.mark.parametrize(
    ("runs", "each"), [(1, 5), (2, 2), (3, 2), (4, 1), (5, 1), (20, 1)], ids=lambda value: str(value)
)
def test_runs_have_equal_parts_of_what_an_application_takes(
    requests: SharedRequests, runs: int, each: int
) -> None:
    requests.set(5)
    assert shares(requests, runs) == [each] * runs


def test_a_run_has_no_more_than_it_wants(requests: SharedRequests) -> None:
    requests.set(64)
    assert shares(requests, 2, wanted=5) == [5, 5]


def test_a_run_that_wants_more_than_is_taken_gets_it_alone(requests: SharedRequests) -> None:
    requests.set(5)
    assert shares(requests, 1, wanted=64) == [64]
    assert shares(requests, 2, wanted=64) == [32, 32]


def test_runs_share_nothing_of_an_unknown_application(requests: SharedRequests) -> None:
    assert shares(requests, 3) == [5, 5, 5]
    requests.set(5)
    requests.set(None)
    assert shares(requests, 3) == [5, 5, 5]


@pytest.mark.parametrize("damaged", ["many", "0", "-3", ""])
def test_a_damaged_number_counts_as_unknown(requests: SharedRequests, redis: FakeRedis, damaged: str) -> None:
    redis.set(taken_key(DIGITS), damaged)

    assert shares(requests, 2) == [5, 5]


def test_runs_of_other_applications_and_tenants_do_not_count(redis: FakeRedis) -> None:
    others = [WaitlistName("acme", 4, "digits", "1.0.0"), WaitlistName("", 3, "digits", "1.0.0")]
    with ExitStack() as stack:
        for each in others:
            SharedRequests(redis, each).set(5)
            stack.enter_context(SharedRequests(redis, each).share("1", 5, LOCKS))
        SharedRequests(redis, DIGITS).set(5)
        assert shares(SharedRequests(redis, DIGITS), 1) == [5]


def test_a_run_between_two_passes_leaves_its_part_to_others(requests: SharedRequests) -> None:
    requests.set(5)
    with requests.share("1", 5, LOCKS), requests.share("2", 5, LOCKS) as beside:
        pass
    with requests.share("2", 5, LOCKS) as alone:
        pass

    assert (beside, alone) == (2, 5)


def test_a_run_that_nobody_carries_on_counts_for_minutes(
    requests: SharedRequests, redis: FakeRedis, clock: Clock
) -> None:
    # Given a run whose worker has died amid a pass, and whose message is lost
    requests.set(5)
    dead = requests.share("dead", 5, LOCKS)
    dead.__enter__()
    clock.forward(COUNTED_SECONDS - 1)
    with requests.share("1", 5, LOCKS) as soon:
        pass

    # When longer than any pass has gone by
    clock.forward(2)

    # Then it has no part
    with requests.share("1", 5, LOCKS) as later:
        pass
    assert (soon, later) == (2, 5)


def test_a_run_counts_for_as_long_as_its_pass_takes(requests: SharedRequests, clock: Clock) -> None:
    # Given a pass that takes longer than a run is counted for without a renewal
    requests.set(5)
    locks = RecordingLocks()
    with requests.share("slow", 5, locks):
        for _ in range(3):
            clock.forward(COUNTED_SECONDS - 1)
            locks.renewals[0]()

        # When another run annotates, then each has its part
        with requests.share("1", 5, LOCKS) as beside:
            pass

    # And a renewal that comes late makes nobody of the pass that has ended
    locks.renewals[0]()
    with requests.share("1", 5, LOCKS) as alone:
        pass
    assert (beside, alone) == (2, 5)
