"""How often and how long to try to reach a log."""

import random
from collections.abc import Callable
from typing import Final

FIRST_SECONDS: Final = 0.2
LONGEST_SECONDS: Final = 5.0


class Patience:
    """Waits grow with every failure in a row, and after `seconds` of failures there is no more of it."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self._since: float | None = None

    def reached(self) -> None:
        """All is well again."""
        self._failures, self._since = 0, None

    def nothing_new(self) -> None:
        """No failure, but no reason for the next attempt to come at once."""
        self._failures += 1

    def failed(self, at_most: float | None = None) -> bool:
        """One more failure; False when it was the last that is borne, `at_most` seconds for this kind."""
        self._failures += 1
        now = self._clock()
        self._since = now if self._since is None else self._since
        longest = self._seconds if at_most is None else min(at_most, self._seconds)
        return now - self._since < longest

    def wait(self) -> float:
        """Seconds until the next attempt. Not the same for all, for an agent restarts under all of them."""
        longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(self._failures, 10))
        return longest * random.uniform(0.5, 1.0)
