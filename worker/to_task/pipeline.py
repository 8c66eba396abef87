"""A pass over a chunk: the next batch is fetched and the last one written while the plugin converts one."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from worker.plugins import RunEndedError
from worker.to_task.attempt import ChunkPass, TaskWork
from worker.to_task.clients import AsyncBackend, EventLoopThread
from worker.to_task.ledger import Ledger, OpenTask
from worker.to_task.methods import AnnotationMethod, fetch

BATCH_SIZE = 32
"""Tasks in one call of the plugin."""
SINGLE_CALLS = 8
"""Tasks that are fetched together while they go to the plugin one a call; a pass may end amid them."""
BATCHES_PER_PASS = 4
"""Batches that are to fit into a pass while a service limits the requests."""
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
        max_failures_in_row: int,
        publish_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop, self._backend, self._ledger, self._route = loop, backend, ledger, method
        self._schema = schema
        self._max_failures_in_row = max_failures_in_row
        self._publish_progress = publish_progress

    def run(self, chunk: int, tasks: Sequence[OpenTask], budget: float) -> ChunkPass:
        """Work `tasks` of the chunk for about `budget` seconds, at least one call of the plugin."""
        attempt = ChunkPass(self._ledger, chunk, self._max_failures_in_row)
        until = time.monotonic() + budget
        left = deque(tasks)
        fetching = None
        if left and not attempt.check_ended():
            fetching = self._fetch_next(left, budget, attempt)
        writing: deque[Future[Any]] = deque()
        try:
            while fetching is not None and not attempt.check_ended() and not attempt.is_over:
                works = self._wait(fetching, attempt)
                fetching = None
                # A service that asks for fewer requests is sent those that finish a task before others. What
                # is fetched is fetched again when the plugin ends the pass.
                is_ahead = self._capacity(budget) is None and not attempt.plugin.are_single
                if is_ahead and self._has_next(left, attempt, until):
                    fetching = self._fetch_next(left, budget, attempt)
                self._ready_and_write(works, attempt, until, writing)
                if fetching is None:
                    while writing:
                        self._wait(writing.popleft(), attempt)
                    if not attempt.is_asked_to_wait and self._has_next(left, attempt, until):
                        fetching = self._fetch_next(left, budget, attempt)
        finally:
            self._drain([*writing, *([fetching] if fetching is not None else [])])
        while writing:
            self._wait(writing.popleft(), attempt)
        return attempt

    def _capacity(self, budget: float) -> int | None:
        return self._backend.capacity(self._route.application, budget / BATCHES_PER_PASS)

    def _has_next(self, left: "deque[OpenTask]", attempt: ChunkPass, until: float) -> bool:
        is_in_time = time.monotonic() <= until and not attempt.is_over
        return bool(left) and self._services_answer(attempt) and is_in_time

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

    def _fetch_next(
        self, left: "deque[OpenTask]", budget: float, attempt: ChunkPass
    ) -> "Future[list[TaskWork]]":
        size = max(SINGLE_CALLS if attempt.plugin.are_single else BATCH_SIZE, self._route.slots or 0)
        capacity = self._capacity(budget)
        size = size if capacity is None else min(size, capacity)
        works = [TaskWork(left.popleft()) for _ in range(min(size, len(left)))]
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
