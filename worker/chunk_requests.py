"""The requests of the chunks that this process annotates: whether another chunk finds some that are free."""

import threading
from collections.abc import Callable

FIRST_REQUESTS = 32
"""So many requests a chunk is expected to send at once when it begins."""


class ChunkRequests:
    """The requests of all chunks of this process: a chunk whose own would only wait is left to others.

    The event loop and the threads of chunks report them; the thread that fetches messages asks.
    """

    def __init__(self) -> None:
        self.most = 0
        """Requests that may be in flight; 0 where none are known of, as in the parent of a prefork pool."""
        self._counts: dict[int, Callable[[], int]] = {}
        self._held = 0
        self._on_free: Callable[[], None] | None = None

    def begin(self, count: Callable[[], int]) -> None:
        """The chunk in this thread sends requests now; `count`: how many are in flight or wait."""
        self._counts[threading.get_ident()] = count
        self.have_changed()

    def end(self) -> None:
        """The chunk in this thread has ended, if there was one."""
        self._counts.pop(threading.get_ident(), None)

    def have_free(self, held: int, on_free: Callable[[], None]) -> bool:
        """Whether the requests of another chunk would be sent at once; `held`: messages of chunks.

        If not, `on_free` is called once, in any thread, when they would.
        """
        self._held, self._on_free = held, on_free
        if self.most and not self._are_free():
            return False
        self._on_free = None
        return True

    def have_changed(self) -> None:
        """Look whether some are free now, if somebody waits for that."""
        on_free = self._on_free
        if on_free is not None and self._are_free():
            self._on_free = None
            on_free()

    def _are_free(self) -> bool:
        counts = list(self._counts.values())
        begin_soon = max(0, self._held - len(counts))
        return sum(count() for count in counts) + begin_soon * FIRST_REQUESTS < self.most


chunk_requests = ChunkRequests()
"""Those of this process."""
