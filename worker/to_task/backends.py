"""The backend as the annotation calls it: many requests at once, within the process's limit."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from worker.platform import AsyncBackendClient, RetryPolicy
from worker.settings import Settings
from worker.to_task.errors import StoppedError

QUICK = {"connect": 3.0, "read": 10.0, "total": 15.0}
PATIENT = {"connect": 3.0, "read": 60.0, "total": 65.0}
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
            return await self._client("quick", QUICK).get_task(task)

    async def get_data_unit(self, data_unit: int) -> dict[str, Any]:
        """See `AsyncBackend`."""
        async with self._turn():
            return await self._client("quick", QUICK).get_data_unit(data_unit)

    async def annotate(
        self, task: int, data: Mapping[str, Any], schema: str | None, record: Callable[[], Awaitable[None]]
    ) -> None:
        """Write the task's data and, in the same turn, `record` it.

        So no more tasks than there are turns are written and not recorded: those that a kill may write twice.
        """
        async with self._turn():
            await self._client("quick", QUICK).annotate_task_data(task, data, schema)
            await record()

    async def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any:
        """See `AsyncBackend`."""
        async with self._turn():
            return await self._client("patient", PATIENT).run_plugin(code, data)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._turns:
            ended = run_has_ended.get()
            if ended is not None and await ended():
                raise StoppedError
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


class Backends:
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
