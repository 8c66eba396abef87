"""A pass over a chunk: its tasks are fetched, converted and written side by side, and wait for no other."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

from worker import blame
from worker.blame import Blame
from worker.chunk_requests import ChunkRequests
from worker.runs.ends import RunEnd
from worker.to_task.attempt import ChunkPass, TaskWork
from worker.to_task.clients import AsyncBackend, EventLoopThread
from worker.to_task.ledger import Ledger, OpenTask
from worker.to_task.methods import AnnotationMethod, fetch

BATCH_SIZE = 32
"""Tasks in one call of the plugin, at most."""
GATHER_SECONDS = 0.005
"""So long the first task of a call waits for others under way, because each call has its own cost."""
SINGLE_CALLS = 8
"""Tasks that are fetched together while they go to the plugin one a call; a pass may end amid them."""
BATCHES_PER_PASS = 4
"""Batches that are to fit into a pass while a service limits the requests."""
CHECK_INTERVAL_SECONDS = 0.5
"""How often a waiting pass publishes progress and checks whether the run has ended."""

LOOP_TIMEOUT_SECONDS = 60.0 * 30
"""Timeout after which the event loop itself counts as hung; every request has a much shorter one."""


class Pipeline:
    """Works the tasks of one chunk. `publish_progress` is called from the step's thread, at each check.

    `run_end`: what is heard of the run; without one the ledger alone says whether it has ended.
    `chunk_requests`: where the process counts its requests. `skip_annotated`: see `fetch`.
    """

    def __init__(
        self,
        loop: EventLoopThread,
        backend: AsyncBackend,
        ledger: Ledger,
        method: AnnotationMethod,
        schema: str | None,
        max_failures_in_row: int,
        publish_progress: Callable[[], None] = lambda: None,
        run_end: RunEnd | None = None,
        chunk_requests: ChunkRequests | None = None,
        skip_annotated: bool = False,
    ) -> None:
        self._loop, self._backend, self._ledger, self._method = loop, backend, ledger, method
        self._schema = schema
        self._max_failures_in_row = max_failures_in_row
        self._publish_progress = publish_progress
        self._run_end = run_end or RunEnd()
        self._chunk_requests = chunk_requests or ChunkRequests()
        self._skip_annotated = skip_annotated

    def run(self, chunk: int, tasks: Sequence[OpenTask], budget: float) -> ChunkPass:
        """Work `tasks` of the chunk for about `budget` seconds, at least one call of the plugin."""
        attempt = ChunkPass(self._ledger, chunk, self._max_failures_in_row, self._run_end)
        if tasks and not attempt.check_ended():
            requests = _Requests(self._backend, self._method, self._schema, attempt, tasks, budget)
            requests.skip_annotated = self._skip_annotated
            requests.on_change = self._chunk_requests.have_changed
            self._run(requests, attempt)
        return attempt

    def _run(self, requests: "_Requests", attempt: ChunkPass) -> None:
        """Call the plugin with what has arrived, until nothing of the pass is running."""
        self._loop.run(requests.begin(), LOOP_TIMEOUT_SECONDS)
        self._chunk_requests.begin(lambda: requests.count)
        stalled_at = time.monotonic() + LOOP_TIMEOUT_SECONDS
        try:
            while not requests.have_ended:
                if self._call_plugin(requests, attempt):
                    stalled_at = time.monotonic() + LOOP_TIMEOUT_SECONDS
                elif not requests.arrived.wait(CHECK_INTERVAL_SECONDS):
                    attempt.check_ended()
                    if time.monotonic() > stalled_at:
                        raise TimeoutError("the event loop of this process hangs")
                self._publish_progress()
        except BaseException:
            # The chunk's lock is released after this, so nothing of the pass may be running then.
            requests.is_cancelled = True
            while not requests.have_ended and time.monotonic() < stalled_at:
                self._loop.call(requests.go_on)
                requests.arrived.wait(CHECK_INTERVAL_SECONDS)
                requests.arrived.clear()
                self._drop(requests)
            raise
        if requests.error is not None:
            raise requests.error

    def _call_plugin(self, requests: "_Requests", attempt: ChunkPass) -> bool:
        """Give the plugin one batch; False when there is none."""
        requests.arrived.clear()
        # What finishes a task goes before what begins one.
        for queue, work_on in ((requests.answered, self._convert), (requests.fetched, self._prepare)):
            if not queue:
                continue
            if len(queue) < BATCH_SIZE and requests.are_running:
                requests.gathered.clear()
                requests.gathered.wait(GATHER_SECONDS)
            if works := requests.take(queue):
                try:
                    work_on(works, requests, attempt)
                except BaseException:
                    self._loop.call(requests.write, works, ())
                    raise
                return True
        return False

    def _convert(self, works: list[TaskWork], requests: "_Requests", attempt: ChunkPass) -> None:
        ready = self._method.convert(works, attempt) if requests.may_convert_answers else []
        self._loop.call(requests.write, works, [] if attempt.check_ended_if_due() else ready)

    def _prepare(self, works: list[TaskWork], requests: "_Requests", attempt: ChunkPass) -> None:
        ready = self._method.prepare(works, attempt, requests.until) if requests.may_begin else []
        follow = requests.write if self._method.slots is None else requests.infer
        self._loop.call(follow, works, [] if attempt.check_ended_if_due() else ready)

    def _drop(self, requests: "_Requests") -> None:
        for queue in (requests.answered, requests.fetched):
            if works := requests.take(queue, len(queue)):
                self._loop.call(requests.write, works, ())


class _Requests:
    """The requests of one pass, on the event loop; the step's thread takes what is for the plugin.

    `active` holds the positions of the tasks that have begun and are not finished in this pass. A task that
    is finished without an outcome stays open, for a later pass.
    """

    def __init__(
        self,
        backend: AsyncBackend,
        method: AnnotationMethod,
        schema: str | None,
        attempt: ChunkPass,
        tasks: Sequence[OpenTask],
        budget: float,
    ) -> None:
        self._backend, self._method, self._schema, self._attempt = backend, method, schema, attempt
        self._budget = budget
        self.until = time.monotonic() + budget
        self._left = deque(tasks)
        self._has_begun = False
        self._has_sampled = False
        self._active: set[int] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._prepared: deque[TaskWork] = deque()
        self._inferring = 0
        self._has_inferred = False
        self.fetched: deque[TaskWork] = deque()
        self.answered: deque[TaskWork] = deque()
        self.arrived = threading.Event()
        """Set when there is something for the plugin, and when everything has ended."""
        self.gathered = threading.Event()
        """Set when there is a whole batch for the plugin."""
        self.have_ended = False
        """Whether no task is active and none will be. Between two tasks none is active for a moment."""
        self.error: BaseException | None = None
        """The first error that is not a task's."""
        self.is_cancelled = False
        self.on_change: Callable[[], None] = lambda: None
        """Called when there are fewer requests than before."""
        self._is_limited = False
        self.skip_annotated = False

    # -- in the step's thread ------------------------------------------------------------------------------

    @property
    def are_running(self) -> bool:
        """Whether a request is under way."""
        return bool(self._running)

    @property
    def count(self) -> int:
        """Requests in flight or waiting for a slot; 0 while a service is sent fewer than there are slots."""
        return 0 if self._is_limited else len(self._running)

    @property
    def may_begin(self) -> bool:
        """Whether tasks may go to the plugin for the first time."""
        return self.may_convert_answers and not self._attempt.is_over

    @property
    def may_convert_answers(self) -> bool:
        """Whether answers of inferences may go to the plugin."""
        return not (self._must_stop or self._attempt.plugin.failed_too_often)

    @staticmethod
    def take(queue: "deque[TaskWork]", most: int = BATCH_SIZE) -> list[TaskWork]:
        """The next batch for the plugin."""
        return [queue.popleft() for _ in range(min(most, len(queue)))]

    # -- on the event loop ---------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Fetch the first tasks; the others follow once a service has answered."""
        self._fetch_more()
        self._has_begun = True
        self._check_ended()

    def infer(self, works: Iterable[TaskWork], prepared: Sequence[TaskWork]) -> None:
        """Ask for the inferences of those of `works` that are prepared; the others are finished."""
        self._prepared.extend(prepared)
        self._finish_others(works, prepared)
        self._infer_more()

    def write(self, works: Iterable[TaskWork], ready: Sequence[TaskWork]) -> None:
        """Write those of `works` that have data; the others are finished."""
        for work in ready:
            self._start(self._request(work, self._write, self._finish))
        self._finish_others(works, ready)

    def go_on(self) -> None:
        """Look again at what waits, because the pass has been cancelled."""
        self._infer_more()

    @property
    def _must_stop(self) -> bool:
        return self.is_cancelled or self.error is not None or self._attempt.ended

    def _fetch_more(self) -> None:
        attempt = self._attempt
        if not self._left or len(self._active) >= self._most():
            return
        if self._must_stop or attempt.is_over or (self._has_begun and not self._may_fetch()):
            return
        for _ in range(min(self._most() - len(self._active), len(self._left))):
            # One of a pass stands for all, as a run may have millions.
            work = TaskWork(self._left.popleft(), is_sampled=not self._has_sampled)
            self._has_sampled = True
            self._active.add(work.open.position)
            self._start(self._request(work, self._fetch, self._have_fetched))

    def _may_fetch(self) -> bool:
        attempt = self._attempt
        services_answer = attempt.got_answer and not attempt.token_rejected
        if not services_answer or attempt.is_asked_to_wait or time.monotonic() > self.until:
            return False
        # A service that asks for fewer requests is sent those that finish a task before others. What is
        # fetched is fetched again when the plugin ends the pass.
        is_ahead = self._capacity() is None and not attempt.plugin.are_single
        return is_ahead or not self._active

    def _most(self) -> int:
        """Tasks that may be active."""
        attempt, slots = self._attempt, self._method.slots
        size = max(SINGLE_CALLS if attempt.plugin.are_single else BATCH_SIZE, slots or 0)
        capacity = self._capacity()
        if capacity is not None:
            return min(size, capacity)
        if attempt.plugin.are_single or not self._has_begun:
            return size
        # One batch beside those whose requests are under way, for each call of the plugin.
        return size + (BATCH_SIZE if slots is None else 2 * BATCH_SIZE)

    def _capacity(self) -> int | None:
        capacity = self._backend.capacity(self._method.application, self._budget / BATCHES_PER_PASS)
        self._is_limited = capacity is not None
        return capacity

    def _infer_more(self) -> None:
        slots = (self._method.slots or 0) - len(self._attempt.pending_inferences)
        self._attempt.saturated = self._method.slots is not None and slots <= 0
        is_late = self._has_inferred and time.monotonic() > self.until
        if self._attempt.saturated or is_late or not self.may_convert_answers:
            dropped = list(self._prepared)
            self._prepared.clear()
            self._finish_others(dropped, ())
        while self._prepared and self._inferring < slots:
            self._inferring += 1
            work = self._prepared.popleft()
            self._start(self._request(work, self._method.infer, self._have_inferred, blame.in_inference))

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._running.add(task)  # the loop itself keeps weak references alone
        task.add_done_callback(self._have_answered)

    def _have_answered(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self.on_change()

    async def _request(
        self,
        work: TaskWork,
        call: Callable[[TaskWork], Awaitable[None]],
        follow: Callable[[TaskWork, bool], None],
        blame_for: Callable[[BaseException], Blame] = blame.in_task,
    ) -> None:
        went_well = False
        try:
            went_well = await self._attempt.process(work, call, blame_for)
        except BaseException as error:  # raised again by the step's thread
            self.error = self.error or error
        follow(work, went_well)

    async def _fetch(self, work: TaskWork) -> None:
        await fetch(self._backend, work, skip_annotated=self.skip_annotated)

    async def _write(self, work: TaskWork) -> None:
        attempt = self._attempt
        await self._backend.annotate(
            work.open.task_id, work.data, self._schema, lambda: attempt.record(work.outcome())
        )

    def _have_fetched(self, work: TaskWork, went_well: bool) -> None:
        self._hand_over(work, went_well, self.fetched)
        self._fetch_more()

    def _have_inferred(self, work: TaskWork, went_well: bool) -> None:
        self._inferring -= 1
        self._has_inferred = self._has_inferred or went_well
        self._hand_over(work, went_well, self.answered)
        self._infer_more()

    def _hand_over(self, work: TaskWork, went_well: bool, queue: "deque[TaskWork]") -> None:
        if went_well and not self._must_stop:
            queue.append(work)
            self.arrived.set()
            if len(queue) >= BATCH_SIZE:
                self.gathered.set()
        else:
            self._finish(work)

    def _finish(self, work: TaskWork, _went_well: bool = False) -> None:
        self._active.discard(work.open.position)
        self._fetch_more()
        self._check_ended()

    def _check_ended(self) -> None:
        if not self._active:
            self.have_ended = True
            self.arrived.set()

    def _finish_others(self, works: Iterable[TaskWork], kept: Sequence[TaskWork]) -> None:
        positions = {work.open.position for work in kept}
        for work in works:
            if work.open.position not in positions:
                self._finish(work)
