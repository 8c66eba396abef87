"""Errors that a fake raises on demand, before or after it has done what it was asked for."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

from worker.platform import RateLimitError, ServerError

FOREVER = 1_000_000


class RateLimiter:
    """A service that admits so many calls a second and answers 429 to the rest: a token bucket.

    Attributes:
        rejected: How many calls it has rejected.
    """

    def __init__(
        self,
        per_second: float,
        *,
        retry_after: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with the calls of one second.

        Args:
            per_second: Calls that are admitted.
            retry_after: Seconds in the header `Retry-After` of a rejection; None for no header.
            clock: Seconds.
        """
        self.rejected = 0
        self._per_second, self._retry_after, self._clock = per_second, retry_after, clock
        self._left, self._at = per_second, clock()

    def __call__(self, call: str) -> BaseException | None:
        """See `Faults.rule`."""
        now = self._clock()
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return None
        self.rejected += 1
        return RateLimitError(retry_after=self._retry_after)


def failing_share(share: float, *, seed: int = 1) -> Callable[[str], BaseException | None]:
    """A service that answers 503 to a share of the calls, at random.

    Args:
        share: From 0 to 1.
        seed: Of the random numbers.

    Returns:
        A rule, see `Faults.rule`.
    """
    random = Random(seed)
    return lambda _call: ServerError("", 503) if random.random() < share else None


class Faults:
    """The errors that calls of a fake raise.

    A fake wraps each call: `with self.faults.of("get_task", key): ...`. `calls` counts every call by its
    name, failed ones included.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.unavailable: BaseException | None = None
        """Raised by every call while it is set."""
        self.rule: Callable[[str], BaseException | None] = lambda _call: None
        """Given the name of each call, the error that it raises, such as that of a `RateLimiter`."""
        self._before: dict[tuple[str, object], deque[BaseException]] = {}
        self._after: dict[tuple[str, object], deque[BaseException]] = {}

    def fail(self, call: str, error: BaseException, *, key: object = None, times: int = FOREVER) -> None:
        """Let `call` raise `error` before it does anything.

        Args:
            call: Name of the fake's method.
            error: What it raises.
            key: Only for this key, such as a task's id; None for every call of that name.
            times: How many calls fail.
        """
        self._before[call, key] = deque([error] * min(times, 1_000))

    def lose_answer(self, call: str, error: BaseException, *, key: object = None, times: int = 1) -> None:
        """Let `call` raise `error` after it was carried out, as when the answer is lost.

        Args:
            call: Name of the fake's method.
            error: What it raises.
            key: Only for this key; None for every call of that name.
            times: How many answers are lost.
        """
        self._after[call, key] = deque([error] * min(times, 1_000))

    def recover(self, call: str, *, key: object = None) -> None:
        """Let `call` work again.

        Args:
            call: Name of the fake's method.
            key: The key that was given to `fail` or `lose_answer`.
        """
        self._before.pop((call, key), None)
        self._after.pop((call, key), None)

    @contextmanager
    def of(self, call: str, key: object = None) -> Iterator[None]:
        """Count the call; raise its error before the block, or after it."""
        self.calls[call] += 1
        if self.unavailable is not None:
            raise self.unavailable
        error = self.rule(call)
        if error is not None:
            raise error
        self._raise(self._before, call, key)
        yield
        self._raise(self._after, call, key)

    @staticmethod
    def _raise(errors: dict[tuple[str, object], deque[BaseException]], call: str, key: object) -> None:
        for place in ((call, key), (call, None)):
            waiting = errors.get(place)
            if waiting:
                raise waiting.popleft()
