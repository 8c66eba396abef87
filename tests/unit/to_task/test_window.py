"""How many requests are in flight against a service that asks for fewer."""

import asyncio

import pytest

from worker.platform import NotFoundError, RateLimitError, ServerError
from worker.to_task.window import AdmittedRate, RequestWindow, RequestWindows


class Clock:
    """Seconds that pass by `forward` alone."""

    def __init__(self) -> None:
        self.now = 1000.0

    def forward(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


async def answered(window: RequestWindow, error: Exception | None = None) -> None:
    async with window.slot():
        await asyncio.sleep(0)
        if error is not None:
            raise error


async def rejected(window: RequestWindow, error: Exception) -> None:
    with pytest.raises(type(error)):
        await answered(window, error)


async def test_an_answer_that_says_later_halves_the_window() -> None:
    window = RequestWindow(16)

    await rejected(window, ServerError("", 503))

    assert window.limit == 8
    assert window.capacity(10) == 8


async def test_requests_in_flight_together_halve_it_once() -> None:
    window = RequestWindow(16)

    await asyncio.gather(*(rejected(window, RateLimitError()) for _ in range(10)))

    assert window.limit == 8


async def test_answers_let_it_grow_to_its_maximum() -> None:
    window = RequestWindow(4)
    await rejected(window, ServerError("", 503))
    limits = [window.limit]

    for _ in range(12):
        await answered(window)
        limits.append(window.limit)

    assert limits == sorted(limits)
    assert (limits[0], limits[-1]) == (2, 4)
    assert window.capacity(10) is None


async def test_other_errors_are_answers() -> None:
    window = RequestWindow(4)

    await rejected(window, NotFoundError())

    assert window.limit == 4


async def test_retry_after_holds_up_nobody() -> None:
    """Requests raise at once with the seconds that are left, so that their chunk can be rescheduled."""
    window = RequestWindow(4)
    await rejected(window, RateLimitError(retry_after=90))

    with pytest.raises(RateLimitError) as caught:
        await asyncio.wait_for(answered(window), 5)

    assert caught.value.retry_after is not None
    assert 80 < caught.value.retry_after <= 90


async def test_requests_that_wait_for_a_slot_end_with_a_pause() -> None:
    # Given a request in flight, and another that waits for it
    window = RequestWindow(1)
    begun, end = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with window.slot():
            begun.set()
            await end.wait()
            raise RateLimitError(retry_after=90)

    one = asyncio.ensure_future(first())
    await begun.wait()
    two = asyncio.ensure_future(answered(window))
    await asyncio.sleep(0)

    # When the first is asked for later
    end.set()

    # Then neither waits
    outcomes = await asyncio.wait_for(asyncio.gather(one, two, return_exceptions=True), 5)
    assert [type(outcome) for outcome in outcomes] == [RateLimitError, RateLimitError]


async def test_a_short_pause_is_waited_for() -> None:
    window = RequestWindow(4)
    await rejected(window, ServerError("", 503))

    await asyncio.wait_for(answered(window), 5)


async def test_repeated_rejections_lengthen_the_pause() -> None:
    clock = Clock()
    window = RequestWindow(4, clock)

    for _ in range(12):
        await rejected(window, ServerError("", 503))
        clock.forward(31)
    await rejected(window, ServerError("", 503))

    with pytest.raises(RateLimitError) as caught:
        await asyncio.wait_for(answered(window), 5)
    assert caught.value.retry_after is not None
    assert 14 < caught.value.retry_after <= 30


def test_after_a_wait_requests_are_as_many_as_were_admitted() -> None:
    # Given a service that admitted five requests in a second, and asks to wait half a minute
    clock = Clock()
    rate = AdmittedRate(clock)
    for _ in range(5):
        rate.count_answer()
    rate.limit(30)
    clock.forward(30)

    # Then a little less than five a second are sent
    assert [rate.seconds_until_send() for _ in range(3)] == pytest.approx([0.0, 0.25, 0.5])


def test_the_rate_grows_slowly_and_then_without_bounds() -> None:
    clock = Clock()
    rate = AdmittedRate(clock)
    for _ in range(5):
        rate.count_answer()
    rate.limit(30)
    rates = []
    for seconds in (30, 45, 45, 1500):
        clock.forward(seconds)
        rates.append(rate.per_second)

    assert rates[:3] == pytest.approx([4.0, 4.5, 8.0])
    clock.forward(1)
    assert rate.per_second is None


def test_without_an_answer_no_rate_is_known() -> None:
    clock = Clock()
    rate = AdmittedRate(clock)
    rate.limit(5)
    clock.forward(5)

    assert rate.per_second is None


async def test_a_busy_application_leaves_the_others_alone() -> None:
    windows = RequestWindows(8)

    await rejected(windows.application("acme", "digits"), ServerError("", 503))

    assert windows.application("acme", "digits").limit == 4
    assert windows.application("acme", "faces").limit == windows.backend.limit == 8


async def test_a_retry_after_that_is_over_still_pauses() -> None:
    clock = Clock()
    window = RequestWindow(4, clock)

    await rejected(window, RateLimitError(retry_after=0))

    with pytest.raises(RateLimitError):
        await asyncio.wait_for(answered(window), 5)


def test_windows_are_kept_of_the_applications_that_are_used() -> None:
    # Given an application that is used all the time, and one that is not
    windows = RequestWindows(4)
    used, other = windows.application(None, "used"), windows.application(None, "other")

    # When many others come
    for number in range(1_000):
        windows.application("acme", str(number))
        windows.application(None, "used")

    # Then the window of the first is kept, and that of the other is not
    assert windows.application(None, "used") is used
    assert windows.application(None, "other") is not other
