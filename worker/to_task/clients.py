"""The process's event loop and the backend's clients on it: many requests at once, within a limit."""

import asyncio
import atexit
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from worker.platform import AsyncBackendClient, RetryPolicy
from worker.settings import Settings, settings
from worker.to_task.steps import RunEndedError

T = TypeVar("T")


class EventLoopThread:
    """Starts with the first use, so that a forked process has its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run it on the loop, beside the caller."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._running())

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run it on the loop and wait for it."""
        return self.start(coroutine).result(timeout)

    @property
    def is_running(self) -> bool:
        """Whether there is a loop now, in this process."""
        return self._loop is not None and self._process == os.getpid()

    def close(self) -> None:
        """End the loop and its thread; a later use starts anew."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is not None and self.is_running:
                return self._loop
            loop = self._loop = asyncio.new_event_loop()
            self._process = os.getpid()
            self._thread = threading.Thread(target=loop.run_forever, name="annotation-loop", daemon=True)
            self._thread.start()
            return loop


TASK_TIMEOUT_SECONDS = {"connect": 3.0, "read": 10.0, "total": 15.0}
INFERENCE_TIMEOUT_SECONDS = {"connect": 3.0, "read": 60.0, "total": 65.0}
"""Seconds. An inference may take long before it is deferred."""
RETRIES = RetryPolicy(attempts=3, budget=10.0)

run_has_ended: ContextVar[Callable[[], Awaitable[bool]] | None] = ContextVar("run_has_ended", default=None)
"""Asked when a request's turn comes, which may be long after it was begun: a stop is heard even then."""


class AsyncBackend(Protocol):
    """The calls that annotating needs."""

    async def get_task(self, task: int) -> dict[str, Any]: ...
    async def get_data_unit(self, data_unit: int) -> dict[str, Any]: ...
    async def annotate(
        self, task: int, data: Mapping[str, Any], schema: str | None, record: Callable[[], Awaitable[None]]
    ) -> None: ...
    async def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any: ...


class TenantBackend:
    """A tenant's client; `turns` is the process's limit of requests in flight.

    The clients are made on the loop, by the first call.
    """

    def __init__(
        self, make: Callable[[dict[str, float]], AsyncBackendClient], turns: asyncio.Semaphore
    ) -> None:
        self._make = make
        self._turns = turns
        self._clients: dict[str, AsyncBackendClient] = {}

    async def get_task(self, task: int) -> dict[str, Any]:
        """See `AsyncBackend`."""
        async with self._turn():
            return await self._client("quick", TASK_TIMEOUT_SECONDS).get_task(task)

    async def get_data_unit(self, data_unit: int) -> dict[str, Any]:
        """See `AsyncBackend`."""
        async with self._turn():
            return await self._client("quick", TASK_TIMEOUT_SECONDS).get_data_unit(data_unit)

    async def annotate(
        self, task: int, data: Mapping[str, Any], schema: str | None, record: Callable[[], Awaitable[None]]
    ) -> None:
        """Write the task's data and, in the same turn, `record` it.

        So no more tasks than there are turns are written and not recorded: those that a kill may write twice.
        """
        async with self._turn():
            await self._client("quick", TASK_TIMEOUT_SECONDS).annotate_task_data(task, data, schema)
            await record()

    async def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any:
        """See `AsyncBackend`."""
        async with self._turn():
            return await self._client("patient", INFERENCE_TIMEOUT_SECONDS).run_plugin(code, data)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._turns:
            ended = run_has_ended.get()
            if ended is not None and await ended():
                raise RunEndedError
            yield

    async def aclose(self) -> None:
        """Give the connections back."""
        for client in self._clients.values():
            await client.aclose()

    def _client(self, name: str, timeout: dict[str, float]) -> AsyncBackendClient:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = self._make(timeout)
        return client


class TenantBackends:
    """One client a tenant, all within WORKER_ANNOTATE_CONCURRENCY."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turns = asyncio.Semaphore(settings.worker_annotate_concurrency)
        self._tenants: dict[str | None, TenantBackend] = {}

    def of(self, tenant: str | None) -> TenantBackend:
        """The backend for the tenant of a run."""
        tenant = tenant or self._settings.synapse_tenant
        return self._tenants.setdefault(tenant, TenantBackend(lambda t: self._new(tenant, t), self._turns))

    async def aclose(self) -> None:
        """Give all connections back. On the loop."""
        for tenant in self._tenants.values():
            await tenant.aclose()

    def _new(self, tenant: str | None, timeout: dict[str, float]) -> AsyncBackendClient:
        return AsyncBackendClient(
            self._settings.synapse_host,
            self._settings.synapse_access_token.get_secret_value(),
            tenant=tenant,
            timeout=timeout,
            connections=self._settings.worker_annotate_concurrency,
            retries=RETRIES,
        )


PROGRESS_INTERVAL_SECONDS = 0.5
MAX_REMEMBERED_JOBS = 1_000


class Throttle:
    """Lets a run's news pass so often and no oftener."""

    def __init__(
        self, seconds: float = PROGRESS_INTERVAL_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()

    def is_due(self, job: str) -> bool:
        """Whether to tell now; then it counts as told."""
        now = self._clock()
        with self._lock:
            if now - self._told.get(job, -self._seconds) < self._seconds:
                return False
            if len(self._told) >= MAX_REMEMBERED_JOBS:
                self._told.clear()
            self._told[job] = now
            return True


class AnnotationRuntime:
    """Made on first use, after the fork."""

    def __init__(self, loop: EventLoopThread, backends: TenantBackends, pace: Throttle) -> None:
        self.loop, self.backends, self.progress_throttle = loop, backends, pace

    def close(self) -> None:
        """Give the connections back and end the loop. A process that ends starts no threads for it."""
        if not self.loop.is_running:
            return
        self.loop.run(self.backends.aclose(), timeout=5)
        self.loop.close()


@lru_cache(maxsize=1)
def annotation_runtime() -> AnnotationRuntime:
    """The crew of this process."""
    made = AnnotationRuntime(EventLoopThread(), TenantBackends(settings()), Throttle())
    atexit.register(made.close)
    return made
