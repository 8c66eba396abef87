"""What Redis still has to be told of held messages, once it can be reached again.

A task that ends while Redis is away cannot be acknowledged. Stock Celery logs that and forgets, so the task
runs again; here the acknowledgement is owed and paid when Redis is back. It belongs to the process and not
to a connection, because a worker makes new connections and channels after every loss, while tasks that were
running end on the old ones.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from worker.broker.unacked import Unacked

Debt = Callable[[Unacked], Any]


class Debts:
    """Acknowledgements and hand-backs that did not reach one Redis, oldest first."""

    def __init__(self) -> None:
        self._owed: deque[Debt] = deque()
        self._paying = threading.Lock()

    def __len__(self) -> int:
        return len(self._owed)

    def add(self, debt: Debt) -> None:
        """Remember; from any thread."""
        self._owed.append(debt)

    def pay(self, unacked: Unacked) -> None:
        """Tell Redis everything; raises what Redis raises, and what it was not told stays owed."""
        with self._paying:
            while self._owed:
                self._owed[0](unacked)
                self._owed.popleft()


_debts: dict[tuple[str, ...], Debts] = {}


def debts_of(*broker: object) -> Debts:
    """The debts of this process towards a broker, named by host, port and database."""
    return _debts.setdefault(tuple(map(str, broker)), Debts())
