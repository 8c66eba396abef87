"""A whole run in a plain process, blocking: what `ToTaskAction.execute()` does when an author calls it.

The same functions as the steps, on a ledger in memory, without Redis and Celery.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from shared.messages import ToTaskMethod, ToTaskParams
from shared.statuses import JobStatus, TaskFailure, ToTaskResult
from worker.pre_processor.direct import ensure_running
from worker.runs.model import Reschedule
from worker.to_task.annotate import finish_pass, select_tasks
from worker.to_task.clients import EventLoopThread
from worker.to_task.discover import NO_TASKS, iter_task_ids, page_size
from worker.to_task.hooks import Answer, Item
from worker.to_task.ledger import (
    MAX_FAILURE_RECORDS,
    Counts,
    InferencePolls,
    Ledger,
    OpenTask,
    TaskOutcome,
    Ticket,
)
from worker.to_task.methods import AnnotationMethod, FileMethod, InferenceMethod
from worker.to_task.pipeline import Pipeline
from worker.to_task.prepare import check_project
from worker.to_task.results import PROGRESS_STEP, result_of

MAX_CONCURRENT_REQUESTS = 16
CHUNK_SIZE = 100
PASS_SECONDS = 15.0
MAX_PLUGIN_FAILURES_IN_ROW = 10


class DirectAction(Protocol):
    """The part of a `ToTaskAction` that a direct run needs."""

    given: dict[str, Any]

    @property
    def client(self) -> Any:
        """A `BackendClient`; raises `RuntimeError` without one."""

    def set_progress(self, current: int, total: int, step: str | None = None) -> None: ...
    def convert_from_files(self, items: Sequence[Item]) -> list[Answer]: ...
    def prepare_inference(self, items: Sequence[Item]) -> list[Answer]: ...
    def convert_from_inference(self, items: Sequence[Item]) -> list[Answer]: ...


class ThreadedBackend:
    """An asynchronous backend over a blocking client, in threads."""

    def __init__(self, client: Any, threads: ThreadPoolExecutor) -> None:
        self._client = client
        self._threads = threads

    async def get_task(self, task: int) -> dict[str, Any]:
        """See `AsyncBackend`."""
        answer: dict[str, Any] = await self._call(self._client.get_task, task)
        return answer

    async def get_data_unit(self, data_unit: int) -> dict[str, Any]:
        """See `AsyncBackend`."""
        answer: dict[str, Any] = await self._call(self._client.get_data_unit, data_unit)
        return answer

    async def annotate(
        self, task: int, data: Mapping[str, Any], schema: str | None, record: Callable[[], Awaitable[None]]
    ) -> None:
        """See `AsyncBackend`."""
        await self._call(self._client.annotate_task_data, task, data, schema)
        await record()

    async def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any:
        """See `AsyncBackend`."""
        return await self._call(self._client.run_plugin, code, data)

    def capacity(self, application: str | None, seconds: float) -> None:
        """See `AsyncBackend`: its threads are few."""

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def run(action: DirectAction, sleep: Callable[[float], None] = time.sleep) -> ToTaskResult:
    """Prepare, collect, annotate, count. Raises what would end a run FAILED before annotating."""
    client = action.client
    params = ToTaskParams.model_validate(action.given)
    check_project(client, params)
    pre_processor = None
    if params.method is ToTaskMethod.INFERENCE:
        pre_processor = ensure_running(client, pre_processor=params.pre_processor or 0, agent=params.agent)
    warnings: list[str] = []
    ids = list(iter_task_ids(client, params, page_size(CHUNK_SIZE), warnings.append))
    ledger = MemoryLedger(ids, CHUNK_SIZE)
    if not ledger.chunks:
        return ToTaskResult(status=JobStatus.FAILED, message=NO_TASKS)
    loop = EventLoopThread()
    try:
        with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS, "annotation") as threads:
            backend = ThreadedBackend(client, threads)
            route: AnnotationMethod = FileMethod(params, action)
            if pre_processor is not None:
                slots = pre_processor.concurrent_requests(params)
                route = InferenceMethod(params, action, backend, ledger, pre_processor, slots)
            pipeline = Pipeline(
                loop,
                backend,
                ledger,
                route,
                params.data_schema,
                MAX_PLUGIN_FAILURES_IN_ROW,
                publish_progress=lambda: _set_progress(action, ledger),
            )
            for chunk in ledger.chunks:
                _annotate_chunk(chunk, pipeline, ledger, lambda: client.get_project(params.project), sleep)
    finally:
        loop.close()
    return result_of(ledger, *warnings)


def _annotate_chunk(
    chunk: int,
    pipeline: Pipeline,
    ledger: Ledger,
    probe: Callable[[], object],
    sleep: Callable[[float], None],
) -> None:
    next_pass: Reschedule | None = Reschedule(0.0)
    while next_pass is not None:
        attempt = pipeline.run(chunk, select_tasks(ledger.open_tasks(chunk)), PASS_SECONDS)
        next_pass = finish_pass(attempt, chunk, ledger, probe)
        sleep(next_pass.countdown if next_pass else 0.0)


def _set_progress(action: DirectAction, ledger: Ledger) -> None:
    counts = ledger.counts()
    action.set_progress(counts.success + counts.failed, counts.total, PROGRESS_STEP)


class MemoryLedger:
    """The ledger of a direct call: these tasks, in chunks of `size`."""

    def __init__(self, task_ids: Sequence[int], size: int) -> None:
        self._ids = list(task_ids)
        self._size = size
        self._done: set[int] = set()
        self._failed = 0
        self._failures: list[TaskFailure] = []
        self._attempts: dict[int, int] = {}
        self._tickets: dict[int, Ticket | None] = {}
        self._polls: dict[int, InferencePolls | None] = {}
        self._single: set[int] = set()
        self._failures_in_row: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def chunks(self) -> range:
        """The numbers of the chunks."""
        return range(-(-len(self._ids) // self._size))

    def has_ended(self) -> bool:
        """Never: nobody stops a direct call."""
        return False

    def open_tasks(self, chunk: int) -> list[OpenTask]:
        """See `Ledger`."""
        with self._lock:
            first = chunk * self._size
            return [
                OpenTask(
                    position,
                    task_id,
                    self._attempts.get(position, 0),
                    self._tickets.get(position),
                    self._polls.get(position),
                )
                for position, task_id in enumerate(self._ids[first : first + self._size], start=first)
                if position not in self._done
            ]

    def record(self, outcomes: Sequence[TaskOutcome]) -> bool:
        """See `Ledger`."""
        with self._lock:
            for mark in outcomes:
                if mark.position in self._done:
                    continue
                self._done.add(mark.position)
                self._tickets.pop(mark.position, None)
                if mark.error is not None:
                    self._failed += 1
                    self._failures.append(TaskFailure(task_id=mark.task_id, error=mark.error))
            del self._failures[MAX_FAILURE_RECORDS:]
        return True

    def set_ticket(self, position: int, ticket: Ticket | None) -> None:
        """See `Ledger`."""
        with self._lock:
            self._tickets[position] = ticket

    def set_polls(self, position: int, polls: InferencePolls | None) -> None:
        """See `Ledger`."""
        with self._lock:
            self._polls[position] = polls

    def now(self) -> float:
        """See `Ledger`."""
        return time.time()

    def increment_attempts(self, positions: Sequence[int]) -> list[int]:
        """See `Ledger`."""
        with self._lock:
            for position in positions:
                self._attempts[position] = self._attempts.get(position, 0) + 1
            return [self._attempts[position] for position in positions]

    def has_single_calls(self, chunk: int) -> bool:
        """See `Ledger`."""
        return chunk in self._single

    def begin_single_calls(self, chunk: int) -> None:
        """See `Ledger`."""
        self._single.add(chunk)

    def count_plugin_failure(self, operation: str) -> int:
        """See `Ledger`."""
        with self._lock:
            self._failures_in_row[operation] = self._failures_in_row.get(operation, 0) + 1
            return self._failures_in_row[operation]

    def reset_plugin_failures(self, operation: str) -> None:
        """See `Ledger`."""
        with self._lock:
            self._failures_in_row.pop(operation, None)

    def counts(self) -> Counts:
        """See `Ledger`."""
        with self._lock:
            return Counts(len(self._done) - self._failed, self._failed, len(self._ids))

    def failures(self) -> list[TaskFailure]:
        """See `Ledger`."""
        with self._lock:
            return list(self._failures)
