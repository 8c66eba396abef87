"""A pass over a chunk: the next batch is fetched and the last one written while the plugin converts one."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from worker.to_task.attempt import ChunkPass, TaskWork
from worker.to_task.clients import AsyncBackend, EventLoopThread
from worker.to_task.ledger import Ledger, OpenTask
from worker.to_task.methods import AnnotationMethod, fetch
from worker.to_task.steps import RunEndedError

BATCH_SIZE = 32
"""Tasks in one call of the plugin."""
CHECK_INTERVAL_SECONDS = 0.5
"""How often a waiting pass publishes progress and checks whether the run has ended."""

LOOP_TIMEOUT_SECONDS = 60.0 * 30
"""Timeout after which the event loop itself counts as hung; every request has a much shorter one."""


class Pipeline:
    """Works the tasks of one chunk. `publish_progress` is called from the step's thread, at each check."""

    def __init__(
        self,
        loop: EventLoopThread,
        backend: AsyncBackend,
        ledger: Ledger,
        method: AnnotationMethod,
        schema: str | None,
        publish_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop, self._backend, self._ledger, self._route = loop, backend, ledger, method
        self._schema = schema
        self._publish_progress = publish_progress

    def run(self, tasks: Sequence[OpenTask], budget: float) -> ChunkPass:
        """Work `tasks` for about `budget` seconds, at least one batch."""
        attempt = ChunkPass(self._ledger)
        until = time.monotonic() + budget
        size = max(BATCH_SIZE, self._route.slots or 0)
        batches = deque(tasks[start : start + size] for start in range(0, len(tasks), size))
        fetching = None
        if batches and not attempt.check_ended():
            fetching = self._fetch(batches.popleft(), attempt)
        writing: deque[Future[Any]] = deque()
        try:
            while fetching is not None and not attempt.check_ended() and not attempt.saturated:
                works = self._wait(fetching, attempt)
                has_next = bool(batches) and self._services_answer(attempt) and time.monotonic() <= until
                fetching = self._fetch(batches.popleft(), attempt) if has_next else None
                self._ready_and_write(works, attempt, until, writing)
        finally:
            self._drain([*writing, *([fetching] if fetching is not None else [])])
        while writing:
            self._wait(writing.popleft(), attempt)
        return attempt

    @staticmethod
    def _services_answer(attempt: ChunkPass) -> bool:
        """Whether further requests can succeed; if not, the end of this pass finds out why."""
        return attempt.got_answer and not attempt.token_rejected

    def _ready_and_write(
        self, works: list[TaskWork], attempt: ChunkPass, until: float, writing: "deque[Future[Any]]"
    ) -> None:
        def wait(coroutine: Any) -> Any:
            return self._wait(self._loop.start(coroutine), attempt)

        if attempt.check_ended():
            return
        ready = self._route.prepare_data(works, attempt, until, wait)
        attempt.saturated = (
            self._route.slots is not None and len(attempt.pending_inferences) >= self._route.slots
        )
        if not ready or attempt.check_ended():
            return
        writing.append(self._loop.start(attempt.process_all(ready, lambda work: self._write(work, attempt))))
        if len(writing) > 1:
            self._wait(writing.popleft(), attempt)

    def _fetch(self, batch: Sequence[OpenTask], attempt: ChunkPass) -> "Future[list[TaskWork]]":
        works = [TaskWork(task) for task in batch]
        return self._loop.start(attempt.process_all(works, lambda work: fetch(self._backend, work)))

    async def _write(self, work: TaskWork, attempt: ChunkPass) -> None:
        if attempt.ended:
            raise RunEndedError
        await self._backend.annotate(
            work.open.task_id, work.data, self._schema, lambda: attempt.record(work.outcome())
        )

    def _wait(self, future: "Future[Any]", attempt: ChunkPass) -> Any:
        """The future's result; meanwhile progress is published and a stop takes effect."""
        deadline = time.monotonic() + LOOP_TIMEOUT_SECONDS
        while not future.done():
            try:
                future.exception(timeout=CHECK_INTERVAL_SECONDS)
            except TimeoutError:
                attempt.check_ended()
                if time.monotonic() > deadline:
                    raise
            self._publish_progress()
        self._publish_progress()
        return future.result()

    def _drain(self, futures: "Sequence[Future[Any]]") -> None:
        """Wait until nothing of this pass is running, because the chunk's lock is released after it."""
        for future in futures:
            with suppress(TimeoutError):
                future.exception(timeout=LOOP_TIMEOUT_SECONDS)
