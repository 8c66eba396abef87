"""A sign of life while something takes long: nobody should have to guess whether it hangs."""

import threading
import time
from collections.abc import Callable
from typing import Final, Self

EVERY_SECONDS: Final = 5.0


class Heartbeat:
    """Calls `beat` now and then with the seconds so far, until the `with` block ends or `stop` is called."""

    def __init__(self, beat: Callable[[float], None], every: float = EVERY_SECONDS) -> None:
        self._beat, self._every = beat, every
        self._over = threading.Event()
        self._begun = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def stop(self) -> None:
        """It is done."""
        self._over.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every):
            self._beat(time.monotonic() - self._begun)
