"""Runs of to_task in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakeredis import FakeRedis

from tests.unit.to_task.world import World
from worker.to_task import methods
from worker.to_task.clients import EventLoopThread


@pytest.fixture
def loop() -> Iterator[EventLoopThread]:
    thread = EventLoopThread()
    yield thread
    thread.close()


@pytest.fixture
def make_world(redis: FakeRedis, loop: EventLoopThread) -> Callable[..., World]:
    def make(
        tasks: int = 0,
        chunk: int = 10,
        priority: int = 0,
        options: dict[str, Any] | None = None,
        **params: Any,
    ) -> World:
        world = World(redis, loop, chunk=chunk, params=params, priority=priority, options=options or {})
        world.backend.tasks = list(range(1, tasks + 1))
        return world

    return make


@pytest.fixture
def by_inference(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """A run by inference, whose polls do not wait."""
    monkeypatch.setattr(methods, "POLL_DELAYS", (0.0,))

    def make(tasks: int, **params: Any) -> World:
        return make_world(tasks, method="inference", pre_processor=5, model=9, **params)

    return make
