"""Task events are sent while a monitor asks for them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.conftest import Clock
from worker.monitoring import task_events
from worker.monitoring.task_events import LEASE_SECONDS, TaskEventsStep, enable_events


class Timer:
    def __init__(self) -> None:
        self.repeated: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def call_repeatedly(self, _seconds: float, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        entry = (function, args)
        self.repeated.append(entry)
        return SimpleNamespace(cancel=lambda: self.repeated.remove(entry))

    def tick(self) -> None:
        for function, args in self.repeated:
            function(*args)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(task_events, "time", SimpleNamespace(monotonic=clock.time))
    return clock


@pytest.fixture
def consumer() -> SimpleNamespace:
    """A worker's consumer, whose dispatcher sends its own events alone, as without `-E`."""
    return SimpleNamespace(event_dispatcher=SimpleNamespace(groups={"worker"}), timer=Timer())


def test_events_are_sent_from_the_start_until_nobody_asks(consumer: SimpleNamespace, clock: Clock) -> None:
    TaskEventsStep(consumer).start(consumer)
    consumer.timer.tick()
    assert "task" in consumer.event_dispatcher.groups

    clock.forward(LEASE_SECONDS + 1)
    consumer.timer.tick()

    assert consumer.event_dispatcher.groups == {"worker"}


def test_events_go_on_while_a_monitor_asks(consumer: SimpleNamespace, clock: Clock) -> None:
    TaskEventsStep(consumer).start(consumer)
    for _ in range(10):
        clock.forward(LEASE_SECONDS / 2)
        enable_events(SimpleNamespace(consumer=consumer))
        consumer.timer.tick()

    assert "task" in consumer.event_dispatcher.groups


def test_a_monitor_that_comes_later_gets_events(consumer: SimpleNamespace, clock: Clock) -> None:
    TaskEventsStep(consumer).start(consumer)
    clock.forward(LEASE_SECONDS + 1)
    consumer.timer.tick()

    enable_events(SimpleNamespace(consumer=consumer))
    consumer.timer.tick()

    assert "task" in consumer.event_dispatcher.groups


def test_a_worker_with_events_switched_on_sends_them_always(consumer: SimpleNamespace, clock: Clock) -> None:
    consumer.event_dispatcher.groups = set()  # of a worker with `-E`: all groups
    TaskEventsStep(consumer).start(consumer)

    clock.forward(LEASE_SECONDS + 1)
    consumer.timer.tick()

    assert consumer.event_dispatcher.groups == set()


def test_a_lost_connection_leaves_no_timer(consumer: SimpleNamespace, clock: Clock) -> None:
    step = TaskEventsStep(consumer)
    step.start(consumer)
    step.stop(consumer)

    assert consumer.timer.repeated == []
