"""Writes what came of tasks into the ledger, off the event loop, together where several wait."""

import asyncio

from worker.to_task.ledger import Ledger, Mark


class Recorder:
    """For one pass. `over` is set once the ledger takes nothing more: the run has ended."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[Mark] = []
        self._writing = False
        self.recorded = 0
        self.over = False

    async def record(self, mark: Mark) -> None:
        """Write `mark` now, or let it go along with the next write, whose caller waits for it."""
        self._waiting.append(mark)
        if self._writing:
            return
        self._writing = True
        try:
            while self._waiting:
                marks, self._waiting = self._waiting, []
                if not await asyncio.to_thread(self._ledger.record, marks):
                    self.over = True
                self.recorded += len(marks)
        finally:
            self._writing = False
