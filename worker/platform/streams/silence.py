"""How long an agent may say nothing."""

import asyncio
from collections.abc import Callable


class Silence:
    """Calls `expire` when whoever waits has waited for `seconds`.

    One timer a log, set anew only when it rings: one for every line costs as much as reading the line.
    """

    def __init__(self, seconds: float, expire: Callable[[Exception], object]) -> None:
        self._seconds = seconds
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._timer = self._loop.call_later(seconds, self._ring)

    def __enter__(self) -> None:
        """Somebody waits now."""
        self._since = self._loop.time()

    def __exit__(self, *_: object) -> None:
        """Something came. What is done with it takes as long as it takes."""
        self._since = None

    def close(self) -> None:
        """Nobody will wait any more."""
        self._timer.cancel()

    def _ring(self) -> None:
        now = self._loop.time()
        left = self._seconds if self._since is None else self._since + self._seconds - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._ring)
        else:
            self._expire(TimeoutError())
