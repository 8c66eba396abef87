"""Errors that a fake raises on demand, before or after it has done what it was asked for."""

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

FOREVER = 1_000_000


class Faults:
    """The errors that calls of a fake raise.

    A fake wraps each call: `with self.faults.of("get_task", key): ...`. `calls` counts every call by its
    name, failed ones included.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.unavailable: BaseException | None = None
        """Raised by every call while it is set."""
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
        self._raise(self._before, call, key)
        yield
        self._raise(self._after, call, key)

    @staticmethod
    def _raise(errors: dict[tuple[str, object], deque[BaseException]], call: str, key: object) -> None:
        for place in ((call, key), (call, None)):
            waiting = errors.get(place)
            if waiting:
                raise waiting.popleft()
