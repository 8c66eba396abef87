"""The event loop and the clients of a process."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakeredis import FakeAsyncRedis

from worker.platform import RateLimitError, ServerError
from worker.runs.ends import RunEnds
from worker.testing import FakeBackend
from worker.testing.backend import FakeAsyncBackend
from worker.to_task import clients
from worker.to_task.clients import (
    INFERENCE_TIMEOUT_SECONDS,
    TASK_TIMEOUT_SECONDS,
    AnnotationRuntime,
    EventLoopThread,
    TenantBackend,
    TenantBackends,
    Throttle,
)
from worker.to_task.window import RequestWindows


def test_the_loop_is_one_thread_and_starts_anew_after_its_end(loop: EventLoopThread) -> None:
    async def where() -> int:
        return threading.get_ident()

    first = loop.run(where(), timeout=5)
    assert first == loop.run(where(), timeout=5) != threading.get_ident()

    loop.close()
    assert loop.run(where(), timeout=5)


def test_an_error_on_the_loop_is_the_callers(loop: EventLoopThread) -> None:
    async def fails() -> None:
        raise LookupError("here")

    with pytest.raises(LookupError, match="here"):
        loop.run(fails(), timeout=5)


def test_all_tenants_share_the_limit_of_requests_in_flight(loop: EventLoopThread) -> None:
    # Given two tenants of a process that may have three requests in flight
    backend = FakeBackend()
    windows = RequestWindows(3)
    made: list[Any] = []

    def make(timeout: dict[str, float]) -> Any:
        made.append(timeout)
        return backend.on_loop

    tenants = [TenantBackend(make, windows) for _ in range(2)]

    # When all kinds of requests are made at once
    async def nothing() -> None: ...

    async def many() -> None:
        calls = [tenant.get_task(n) for n in range(10) for tenant in tenants]
        await asyncio.gather(*calls, *(tenants[0].annotate(n, {}, None, nothing) for n in range(10)))

    loop.run(many(), timeout=5)

    # Then no more were in flight, over one client a tenant
    assert max(backend.peak_in_flight.values()) <= 3
    assert made == [TASK_TIMEOUT_SECONDS, TASK_TIMEOUT_SECONDS]


def test_the_runtime_closes_its_connections_once(loop: EventLoopThread) -> None:
    # Given a process that has called the backend
    settings: Any = SimpleNamespace(worker_annotate_concurrency=4, synapse_tenant="acme")
    backends = TenantBackends(settings)
    closed: list[str | None] = []

    class Client(FakeAsyncBackend):
        async def aclose(self) -> None:
            closed.append("acme")

    backends._new = lambda tenant, timeout: Client(FakeBackend())  # type: ignore[assignment, method-assign, return-value]
    loop.run(backends.of(None).get_task(1), timeout=5)

    # When it ends
    runtime = AnnotationRuntime(loop, backends, RunEnds(loop.call, FakeAsyncRedis), Throttle())
    runtime.close()
    runtime.close()

    # Then its connections are closed, once
    assert closed == ["acme"]
    assert not loop.is_running


class ClosableClient(FakeAsyncBackend):
    is_closed = False

    async def get_task(self, task: int) -> dict[str, Any]:
        assert not self.is_closed
        return await super().get_task(task)

    async def aclose(self) -> None:
        self.is_closed = True


def test_clients_of_a_tenant_that_asks_for_nothing_are_closed(
    loop: EventLoopThread, monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Any], None]
) -> None:
    # Given a pass that has asked the backend for something
    monkeypatch.setattr(clients, "IDLE_CLIENT_SECONDS", 0.05)
    made: list[ClosableClient] = []

    def make(timeout: dict[str, float]) -> Any:
        made.append(ClosableClient(FakeBackend()))
        return made[-1]

    tenant = TenantBackend(make, RequestWindows(1))
    loop.run(tenant.get_task(1), timeout=5)

    # When it asks for nothing for a while, then its client is closed
    eventually(lambda: made[0].is_closed)

    # And when it goes on, it has another one
    loop.run(tenant.get_task(2), timeout=5)
    assert len(made) == 2
    eventually(lambda: made[1].is_closed)


def test_a_client_that_is_asked_for_something_stays_open(
    loop: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a request that takes longer than an unused client is kept
    monkeypatch.setattr(clients, "IDLE_CLIENT_SECONDS", 0.02)
    looks, has_looked = [], asyncio.Event()
    client = ClosableClient(FakeBackend())

    async def get_task(task: int) -> dict[str, Any]:
        await has_looked.wait()
        return {"is_closed": client.is_closed}

    client.get_task = get_task  # type: ignore[method-assign]
    tenant = TenantBackend(lambda timeout: cast(Any, client), RequestWindows(1))
    look = tenant._close_idle

    def counted() -> None:
        looks.append(1)
        look()
        if len(looks) == 3:
            has_looked.set()

    monkeypatch.setattr(tenant, "_close_idle", counted)

    # When it is looked at meanwhile, then it stays open
    assert loop.run(tenant.get_task(1), timeout=60) == {"is_closed": False}


def test_an_inference_has_more_time_than_a_read(loop: EventLoopThread) -> None:
    made: list[Any] = []
    backend = FakeBackend()
    backend.inference_answer = lambda call: {}

    def make(timeout: dict[str, float]) -> Any:
        made.append(timeout)
        return backend.on_loop

    loop.run(TenantBackend(make, RequestWindows(1)).run_plugin("pre", {"params": {}}), timeout=5)

    assert made == [INFERENCE_TIMEOUT_SECONDS]


def test_progress_is_published_no_oftener_than_allowed() -> None:
    now = [0.0]
    throttle = Throttle(0.5, clock=lambda: now[0])

    due = []
    for now[0] in (0.0, 0.4, 0.5, 0.9, 1.0):
        due.append(throttle.is_due("42"))

    assert due == [True, False, True, False, True]
    assert throttle.is_due("43")


def test_a_request_is_sent_again_after_a_short_pause(loop: EventLoopThread) -> None:
    backend = FakeBackend()
    backend.faults.fail("get_task", ServerError("", 503), times=3)
    tenant = TenantBackend(lambda timeout: backend.on_loop, RequestWindows(4))  # type: ignore[arg-type, return-value]

    loop.run(tenant.get_task(1), timeout=10)

    assert backend.faults.calls["get_task"] == 4


def test_a_request_is_not_sent_before_retry_after(loop: EventLoopThread) -> None:
    backend = FakeBackend()
    backend.faults.fail("get_task", RateLimitError(retry_after=30), times=1)
    tenant = TenantBackend(lambda timeout: backend.on_loop, RequestWindows(4))  # type: ignore[arg-type, return-value]

    with pytest.raises(RateLimitError):
        loop.run(tenant.get_task(1), timeout=10)

    assert backend.faults.calls["get_task"] == 1
