"""The process's event loop and the backend's clients on it: many requests at once, within a limit."""

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import uvloop
from redis.asyncio import Redis as AsyncRedis

from shared.redis_url import read_redis_url
from worker.blame import asks_for_later
from worker.chunk_requests import chunk_requests
from worker.per_process import RecentlyUsed, once_per_process
from worker.platform import AsyncBackendClient, ClientError, RetryPolicy
from worker.plugins import RunEndedError
from worker.pre_processor.serve_application import application_key
from worker.runs.ends import RunEnds
from worker.settings import Settings, settings
from worker.to_task.window import RequestWindow, RequestWindows

T = TypeVar("T")


class EventLoopThread:
    """The process's event loop in a thread; started at first use, so that a forked process has its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run the coroutine on the loop, concurrently with the caller."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._running())

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Call the function on the loop soon."""
        self._running().call_soon_threadsafe(function, *args)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run the coroutine on the loop and wait for its result; `timeout` in seconds."""
        return self.start(coroutine).result(timeout)

    @property
    def is_running(self) -> bool:
        """Whether the loop runs in this process."""
        return self._loop is not None and self._process == os.getpid()

    def close(self) -> None:
        """Stop the loop and its thread; a later use starts new ones."""
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
            loop = self._loop = uvloop.new_event_loop()
            self._process = os.getpid()
            self._thread = threading.Thread(target=loop.run_forever, name="annotation-loop", daemon=True)
            self._thread.start()
            return loop


TASK_TIMEOUT_SECONDS = {"connect": 3.0, "read": 10.0, "total": 15.0}
INFERENCE_TIMEOUT_SECONDS = {"connect": 3.0, "read": 60.0, "total": 65.0}
"""An inference may take long before it is deferred."""
RETRIES = RetryPolicy(attempts=3, budget=10.0, retries_statuses=False)
"""After an answer that asks for a later call, the window of requests says when."""

MAX_SENDS = 6
"""How often a request is sent to a service that asks for later calls and not for a long wait."""

pass_has_ended: ContextVar[Callable[[], Awaitable[bool]] | None] = ContextVar("pass_has_ended", default=None)
"""Whether the run has ended for which a request is sent, or its chunk's lease was lost.

Called when a request gets its slot, which may be long after it was queued: a stop takes effect then."""


class AsyncBackend(Protocol):
    """The calls of the backend that annotating needs."""

    async def get_task(self, task: int) -> dict[str, Any]: ...
    async def get_data_unit(self, data_unit: int) -> dict[str, Any]: ...
    async def annotate(
        self, task: int, data: Mapping[str, Any], schema: str | None, record: Callable[[], Awaitable[None]]
    ) -> None: ...
    async def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any: ...

    def capacity(self, application: str | None, seconds: float) -> int | None:
        """Requests that can be expected to be sent within `seconds`; None while no service asks for fewer."""


IDLE_CLIENT_SECONDS = 300.0
"""Clients of a tenant of which nothing was asked for so long are closed."""


class TenantBackend:
    """A tenant's clients; `windows` limits the requests in flight of the whole process.

    The clients are created on the event loop by the first call, and again by the first one after they were
    closed, which a pass that has not asked for long does not notice.
    """

    def __init__(
        self,
        make: Callable[[dict[str, float]], AsyncBackendClient],
        windows: RequestWindows,
        tenant: str | None = None,
    ) -> None:
        self._make = make
        self._windows = windows
        self._tenant = tenant
        self._clients: dict[str, AsyncBackendClient] = {}
        self._calls = 0
        self._used_at = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    async def get_task(self, task: int) -> dict[str, Any]:
        """See `AsyncBackend`."""
        return await self._send(self._windows.backend, lambda: self._tasks().get_task(task))

    async def get_data_unit(self, data_unit: int) -> dict[str, Any]:
        """See `AsyncBackend`."""
        return await self._send(self._windows.backend, lambda: self._tasks().get_data_unit(data_unit))

    async def annotate(
        self, task: int, data: Mapping[str, Any], schema: str | None, record: Callable[[], Awaitable[None]]
    ) -> None:
        """Write the task's data and call `record` within the same slot.

        A kill can therefore leave at most as many tasks written and not recorded as there are slots; only
        those are written twice.
        """

        async def write() -> None:
            await self._tasks().annotate_task_data(task, data, schema)
            await record()

        await self._send(self._windows.backend, write)

    async def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any:
        """See `AsyncBackend`."""
        window = self._window(application_key(code, data.get("version"), data.get("agent")))
        client = "inference", INFERENCE_TIMEOUT_SECONDS
        return await self._send(window, lambda: self._client(*client).run_plugin(code, data))

    def capacity(self, application: str | None, seconds: float) -> int | None:
        """See `AsyncBackend`."""
        windows = [self._windows.backend]
        if application is not None:
            windows.append(self._window(application))
        return min(
            (capacity for window in windows if (capacity := window.capacity(seconds)) is not None),
            default=None,
        )

    def _window(self, application: str) -> RequestWindow:
        return self._windows.application(self._tenant, application)

    async def _send(self, window: RequestWindow, call: Callable[[], Awaitable[T]]) -> T:
        """Call within a slot; again after a short pause, because a task that goes back is fetched anew."""
        self._calls += 1
        try:
            return await self._send_in_slot(window, call)
        finally:
            self._calls -= 1
            self._used_at = asyncio.get_running_loop().time()

    async def _send_in_slot(self, window: RequestWindow, call: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, MAX_SENDS + 1):
            try:
                # A request that waits for its window must not keep a slot from those to other services.
                async with window.slot(), self._windows.slots:
                    ended = pass_has_ended.get()
                    if ended is not None and await ended():
                        raise RunEndedError
                    return await call()
            except ClientError as error:
                if attempt == MAX_SENDS or not (asks_for_later(error) and window.is_open_soon):
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def aclose(self) -> None:
        """Close the clients' connections."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        left = IDLE_CLIENT_SECONDS if self._calls else self._used_at + IDLE_CLIENT_SECONDS - loop.time()
        if left > 0:
            loop.call_later(left, self._close_idle)
            return
        task = loop.create_task(self.aclose())
        self._closing.add(task)  # the loop itself keeps weak references alone
        task.add_done_callback(self._closing.discard)

    def _tasks(self) -> AsyncBackendClient:
        return self._client("task", TASK_TIMEOUT_SECONDS)

    def _client(self, name: str, timeout: dict[str, float]) -> AsyncBackendClient:
        client = self._clients.get(name)
        if client is None:
            if not self._clients:
                asyncio.get_running_loop().call_later(IDLE_CLIENT_SECONDS, self._close_idle)
            client = self._clients[name] = self._make(timeout)
        return client


class TenantBackends:
    """The backends of all tenants, together within WORKER_ANNOTATE_CONCURRENCY requests in flight."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._windows = RequestWindows(settings.worker_annotate_concurrency)
        self._tenants: RecentlyUsed[str | None, TenantBackend] = RecentlyUsed()
        self._lock = threading.Lock()

    def of(self, tenant: str | None) -> TenantBackend:
        """The backend for the tenant of a run."""
        tenant = tenant or self._settings.synapse_tenant
        with self._lock:
            found = self._tenants.get(tenant)
            if found is None:
                found = TenantBackend(lambda timeout: self._new(tenant, timeout), self._windows, tenant)
                self._tenants[tenant] = found
        return found

    async def aclose(self) -> None:
        """Close all connections. On the event loop."""
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
    """Limits how often the progress of a run is published."""

    def __init__(
        self, seconds: float = PROGRESS_INTERVAL_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._published: dict[str, float] = {}
        self._lock = threading.Lock()

    def is_due(self, job: str) -> bool:
        """Whether the progress of `job` is due; a True counts as published."""
        now = self._clock()
        with self._lock:
            if now - self._published.get(job, -self._seconds) < self._seconds:
                return False
            if len(self._published) >= MAX_REMEMBERED_JOBS:
                self._published.clear()
            self._published[job] = now
            return True


class AnnotationRuntime:
    """What annotating needs once per process; created at first use, after the fork."""

    def __init__(
        self, loop: EventLoopThread, backends: TenantBackends, ends: RunEnds, pace: Throttle
    ) -> None:
        self.loop, self.backends, self.ends, self.progress_throttle = loop, backends, ends, pace

    def close(self) -> None:
        """Close the connections and stop the loop, if it was ever started."""
        if not self.loop.is_running:
            return
        self.loop.run(self.backends.aclose(), timeout=5)
        self.loop.run(self.ends.aclose(), timeout=5)
        self.loop.close()


def _event_redis() -> "AsyncRedis":
    pool = read_redis_url(settings().redis_url).async_pool(
        max_connections=1, decode_responses=True, socket_connect_timeout=3
    )
    return AsyncRedis(connection_pool=pool)


@once_per_process
def annotation_runtime() -> AnnotationRuntime:
    """The annotation runtime of this process."""
    loop = EventLoopThread()
    chunk_requests.most = settings().worker_annotate_concurrency
    made = AnnotationRuntime(loop, TenantBackends(settings()), RunEnds(loop.call, _event_redis), Throttle())
    atexit.register(made.close)
    return made
