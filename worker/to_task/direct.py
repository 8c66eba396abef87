"""A whole run in a plain process, blocking: what `ToTaskAction.execute()` does when an author calls it.

The same functions as the steps, on a ledger in memory, without Redis and Celery.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from shared.messages import ToTaskMethod, ToTaskParams
from shared.statuses import JobStatus, ToTaskResult
from worker.pre_processor.direct import ensure_running
from worker.runs.model import Reschedule
from worker.to_task.annotate import finish_pass, select_tasks
from worker.to_task.clients import EventLoopThread
from worker.to_task.discover import NO_TASKS, iter_task_ids, page_size
from worker.to_task.hooks import Answer, Item
from worker.to_task.ledger import Ledger, MemoryLedger
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
                route = InferenceMethod(params, action, backend, ledger, pre_processor)
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
