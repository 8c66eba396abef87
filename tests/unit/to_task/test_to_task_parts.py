"""The parts of a process: loop, limit of requests, pace of news, batches of the plugin; the steps."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.to_task.world import World
from worker.plugins import PluginCallError, PluginTimeoutError
from worker.pre_processor.waitlist import DETECT, DISPATCH
from worker.testing import FakeBackend
from worker.testing.backend import FakeAsyncBackend
from worker.to_task import steps, tasks
from worker.to_task.attempt import TaskWork
from worker.to_task.clients import (
    INFERENCE_TIMEOUT_SECONDS,
    TASK_TIMEOUT_SECONDS,
    AnnotationRuntime,
    EventLoopThread,
    TenantBackend,
    TenantBackends,
    Throttle,
)
from worker.to_task.hooks import PluginHooks, call_hook
from worker.to_task.ledger import OpenTask


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
    turns = asyncio.Semaphore(3)
    made: list[Any] = []

    def make(timeout: dict[str, float]) -> Any:
        made.append(timeout)
        return backend.on_loop

    tenants = [TenantBackend(make, turns) for _ in range(2)]

    # When all kinds of requests are made at once
    async def nothing() -> None: ...

    async def many() -> None:
        calls = [tenant.get_task(n) for n in range(10) for tenant in tenants]
        await asyncio.gather(*calls, *(tenants[0].annotate(n, {}, None, nothing) for n in range(10)))

    loop.run(many(), timeout=5)

    # Then no more were in flight, over one client a tenant
    assert max(backend.peak_in_flight.values()) <= 3
    assert made == [TASK_TIMEOUT_SECONDS, TASK_TIMEOUT_SECONDS]


def test_a_crew_gives_its_connections_back(loop: EventLoopThread) -> None:
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
    crew = AnnotationRuntime(loop, backends, Throttle())
    crew.close()
    crew.close()

    # Then its connections are closed, once
    assert closed == ["acme"]
    assert not loop.is_running


def test_an_inference_has_more_time_than_a_read(loop: EventLoopThread) -> None:
    made: list[Any] = []
    backend = FakeBackend()
    backend.inference_answer = lambda call: {}

    def make(timeout: dict[str, float]) -> Any:
        made.append(timeout)
        return backend.on_loop

    loop.run(TenantBackend(make, asyncio.Semaphore(1)).run_plugin("pre", {"params": {}}), timeout=5)

    assert made == [INFERENCE_TIMEOUT_SECONDS]


def test_news_of_a_run_come_no_oftener_than_allowed() -> None:
    now = [0.0]
    pace = Throttle(0.5, clock=lambda: now[0])

    due = []
    for now[0] in (0.0, 0.4, 0.5, 0.9, 1.0):
        due.append(pace.is_due("42"))

    assert due == [True, False, True, False, True]
    assert pace.is_due("43")


@pytest.mark.parametrize(
    "error", [PluginCallError("ActorDiedError", "it died"), PluginTimeoutError("too long")]
)
def test_each_item_of_a_batch_with_a_bad_one_is_called_by_itself(error: Exception) -> None:
    sizes: list[int] = []

    def hook(items: Any) -> list[Any]:
        sizes.append(len(items))
        if {"n": 5} in items:
            raise error
        return [{"ok": {"n": item["n"]}} for item in items]

    answers = call_hook(hook, [{"n": n} for n in range(8)])

    assert [n for n, answer in enumerate(answers) if "ok" in answer] == [0, 1, 2, 3, 4, 6, 7]
    assert answers[5] == {"error": str(error)}
    assert sizes == [8, *[1] * 8]


def test_the_host_is_asked_by_operation(make_world: Callable[..., World]) -> None:
    world = make_world(1)
    hooks = PluginHooks(world.host, None, None)  # type: ignore[arg-type]
    item = {"task_data": {"id": 1}, "data_file_name": "f", "primary_file_url": "u", "model_id": 9}

    hooks.convert_from_files([item])
    hooks.prepare_inference([item])
    hooks.convert_from_inference([{**item, "inference_data": 7}])

    assert [operation for operation, _ in world.host.batches] == [
        "convert_from_files", "prepare_inference", "convert_from_inference",
    ]  # fmt: skip


def test_an_error_is_cut_and_cleaned() -> None:
    work = TaskWork(OpenTask(0, 7))

    assert work.outcome("see http://files/1?token=abc").error == "see <url>"
    assert len(work.outcome("x" * 10_000).error or "") == 500


def test_the_steps_of_a_run_come_one_after_the_other() -> None:
    way = [steps.INITIALIZE, steps.PREPARE, DETECT, DISPATCH, steps.FETCH_TASKS, steps.SPREAD, steps.FINALIZE]

    assert [step.position for step in way] == [10, 20, 30, 35, 50, 60, 70]
    assert (steps.ANNOTATE.position, steps.ANNOTATE.queue, steps.ANNOTATE.has_parts) == (60, "annotate", True)


def test_every_step_has_its_door() -> None:
    doors = [tasks.initialize, tasks.prepare, tasks.fetch_tasks, tasks.spread, tasks.annotate, tasks.finalize]

    assert [door.name for door in doors] == [
        "to_task.initialize",
        "to_task.prepare",
        "to_task.fetch_tasks",
        "to_task.spread",
        "to_task.annotate",
        "to_task.finalize",
    ]
    assert tasks.to_task.name == "to_task"
