"""How many requests may be in flight against a service: fewer once it asks for later calls, then more again.

The number of requests is controlled as TCP controls a connection's: halved by an answer that asks for a later
call, and one more for each window of answers (AIMD). A service that says by `Retry-After` when to come again
probably limits requests a second, so after that wait they are sent at the rate that it admitted before.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from worker.blame import asks_for_later, retry_after_seconds
from worker.per_process import RecentlyUsed
from worker.platform import ClientError, HTTPError, RateLimitError
from worker.runs.bulkhead import backoff

FIRST_PAUSE_SECONDS = 0.05
MAX_PAUSE_SECONDS = 30.0
MAX_WAIT_SECONDS = 1.0
"""A pause of the window's own choice whose end a request waits for; else its chunk is rescheduled."""

MEASURED_SECONDS = 5.0
"""The admitted rate is measured over the last seconds."""
MIN_REQUESTS_PER_SECOND = 0.5
MAX_REQUESTS_PER_SECOND = 10_000.0
"""Above it the rate is not controlled any more."""
DECREASE = 0.8
"""Part of the admitted rate with which requests begin after a wait."""
MIN_GROWTH_SECONDS = 5.0
WAITS_PER_GROWTH = 3.0
"""The rate doubles in three times the wait that the service asked for, and grows by the cube of the time: a
long wait is rarely provoked, and a service that has recovered is used in full again."""


class AdmittedRate:
    """The requests a second that a service admitted, and from that how many it is sent after a wait."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._answers: deque[list[float]] = deque()
        """Second and number of answers in it."""
        self._since = clock()
        self._elapsed_seconds = 0.0
        self._measured: float | None = None
        """Answers before and during the wait that has begun; None outside of a wait."""
        self._base: float | None = None
        self._growth_seconds = MIN_GROWTH_SECONDS
        self._next_send = 0.0

    def count_answer(self) -> None:
        """A request was admitted."""
        if self._measured is not None:
            self._measured += 1
            return
        second = float(int(self._clock()))
        if not self._answers or self._answers[-1][0] != second:
            self._answers.append([second, 0.0])
        self._answers[-1][1] += 1
        while self._answers[0][0] < second - MEASURED_SECONDS:
            self._answers.popleft()

    def limit(self, wait_seconds: float) -> None:
        """The service asks to wait: after that, requests are sent a little slower than it admitted them."""
        now = self._clock()
        self._elapsed_seconds = min(max(now - self._since, 1.0), MEASURED_SECONDS)
        self._measured = sum(
            count for second, count in self._answers if second >= int(now - MEASURED_SECONDS)
        )
        self._growth_seconds = max(MIN_GROWTH_SECONDS, WAITS_PER_GROWTH * wait_seconds)
        self._since = self._next_send = now + wait_seconds
        self._answers.clear()

    @property
    def per_second(self) -> float | None:
        """The rate now; None while it is not limited."""
        if self._measured is not None and self._clock() >= self._since:
            # Without any answer the service was unavailable, which says nothing about a rate.
            if self._measured > 0:
                admitted = self._measured / self._elapsed_seconds
                self._base = max(MIN_REQUESTS_PER_SECOND, DECREASE * admitted)
            self._measured = None
        if self._base is None:
            return None
        rate = self._base * (1 + (max(0.0, self._clock() - self._since) / self._growth_seconds) ** 3)
        if rate > MAX_REQUESTS_PER_SECOND:
            self._base = None
        return rate

    def seconds_until_send(self) -> float:
        """Seconds until the next request may be sent, which is reserved by this call."""
        rate = self.per_second
        if rate is None:
            return 0.0
        now = self._clock()
        send_at = max(now, self._next_send)
        self._next_send = send_at + 1 / rate
        return send_at - now


class RequestWindow:
    """The requests in flight against one service, at most `max_requests`. Used on the event loop alone."""

    def __init__(self, max_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max = max_requests
        self._clock = clock
        self._limit = float(max_requests)
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._rate = AdmittedRate(clock)
        self._rejections = 0
        self._shrunk_at = float("-inf")
        self._paused_until = float("-inf")
        self._is_asked = False

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    @property
    def is_open_soon(self) -> bool:
        """Whether a request that is sent again now waits for no longer than `MAX_WAIT_SECONDS`."""
        seconds = self._paused_until - self._clock()
        return seconds <= 0 or (seconds <= MAX_WAIT_SECONDS and not self._is_asked)

    def capacity(self, seconds: float) -> int | None:
        """Requests that can be sent within `seconds`, at least one; None while nothing limits them."""
        rate = self._rate.per_second
        if rate is None and self._limit >= self._max:
            return None
        sent = self._limit if rate is None else min(self._limit, rate * seconds)
        return max(1, int(sent))

    def slot(self) -> "WindowSlot":
        """For one request, as an asynchronous context manager."""
        return WindowSlot(self)

    async def enter(self) -> float:
        """Wait for a slot; returns the moment of the clock at which the request is sent.

        Raises `RateLimitError` with the seconds left while the service asks for none.
        """
        await self._enter()
        return self._clock()

    def leave(self, sent_at: float, error: BaseException | None) -> None:
        """Give the slot back; what the request ended with says how many may be in flight."""
        if error is None:
            self._grow()
        elif isinstance(error, ClientError) and asks_for_later(error):
            self._shrink(sent_at, retry_after_seconds(error))
        elif isinstance(error, HTTPError):
            self._grow()
        self._in_flight -= 1
        self._wake()

    async def _enter(self) -> None:
        while True:
            await self._wait_for_pause()
            if self._in_flight < self.limit:
                self._in_flight += 1
                try:
                    seconds = self._rate.seconds_until_send()
                    if seconds > 0:
                        await asyncio.sleep(seconds)
                    await self._wait_for_pause()
                except BaseException:
                    self._in_flight -= 1
                    self._wake()
                    raise
                return
            free = asyncio.get_running_loop().create_future()
            self._waiting.append(free)
            try:
                await free
            except asyncio.CancelledError:
                self._wake()
                raise

    async def _wait_for_pause(self) -> None:
        while (seconds := self._paused_until - self._clock()) > 0:
            if self._is_asked or seconds > MAX_WAIT_SECONDS:
                raise RateLimitError("the service asked for later calls", retry_after=seconds)
            await asyncio.sleep(seconds)

    def _shrink(self, sent_at: float, asked_seconds: float | None) -> None:
        now = self._clock()
        if sent_at > self._shrunk_at:
            # Once for all requests that were in flight together.
            self._shrunk_at = now
            self._limit = max(1.0, self._limit / 2)
            self._rejections += 1
            if asked_seconds is not None:
                self._rate.limit(asked_seconds)
        seconds = backoff(self._rejections - 1, MAX_PAUSE_SECONDS, first=FIRST_PAUSE_SECONDS)
        seconds = max(seconds, asked_seconds or 0.0)
        if now + seconds > self._paused_until:
            self._paused_until, self._is_asked = now + seconds, asked_seconds is not None

    def _grow(self) -> None:
        self._rejections = 0
        self._limit = min(float(self._max), self._limit + 1 / self._limit)
        self._rate.count_answer()

    def _wake(self) -> None:
        """Let as many go on as have a slot now; during a pause all, because they must not wait for it."""
        is_paused = self._paused_until > self._clock()
        count = len(self._waiting) if is_paused else self.limit - self._in_flight
        while self._waiting and count > 0:
            free = self._waiting.popleft()
            if not free.done():
                free.set_result(None)
                count -= 1


class WindowSlot:
    """One request in a window. A class, because a generator's context manager takes longer than the rest."""

    __slots__ = ("_sent_at", "_window")

    def __init__(self, window: RequestWindow) -> None:
        self._window = window
        self._sent_at = 0.0

    async def __aenter__(self) -> None:
        self._sent_at = await self._window.enter()

    async def __aexit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: object
    ) -> None:
        self._window.leave(self._sent_at, error)


class RequestWindows:
    """The windows of a process: one for the backend, one for each application behind it.

    An application that is busy slows the runs that need it alone. All requests together have `slots`.
    """

    def __init__(self, max_requests: int) -> None:
        self._max = max_requests
        self.slots = asyncio.Semaphore(max_requests)
        self.backend = RequestWindow(max_requests)
        self._applications: RecentlyUsed[tuple[str | None, str], RequestWindow] = RecentlyUsed()

    def application(self, tenant: str | None, application: str) -> RequestWindow:
        """The window of an application; see `application_key`."""
        window = self._applications.get((tenant, application))
        if window is None:
            window = self._applications[tenant, application] = RequestWindow(self._max)
        return window
