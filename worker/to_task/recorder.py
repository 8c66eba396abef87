"""Writes what came of tasks into the ledger, off the event loop, together where several wait."""

import asyncio

from worker.to_task.ledger import Ledger, Mark


class Recorder:
    """For one pass. `over` is set once the ledger takes nothing more: the run has ended."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[Mark] = []
        self._next: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self.over = False

    async def record(self, mark: Mark) -> None:
        """Return once `mark` is in the ledger, with those that came while it waited for the last write."""
        self._waiting.append(mark)
        if self._next is None:
            self._next = asyncio.ensure_future(self._write())
        await asyncio.shield(self._next)

    async def _write(self) -> None:
        async with self._turn:
            marks, self._waiting, self._next = self._waiting, [], None
            if not await asyncio.to_thread(self._ledger.record, marks):
                self.over = True
