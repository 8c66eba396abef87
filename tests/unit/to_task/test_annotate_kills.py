"""A worker that dies at any line: the run goes on from what is in Redis, and counts every task once."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.in_process_worker import Delivery
from tests.unit.conftest import Clock
from tests.unit.to_task.world import JOB, KilledError, World
from worker.lua import Scripts
from worker.runs.keys import lock_key
from worker.runs.model import Continue, Finish, Outcome, Reschedule
from worker.to_task.annotate import annotate, dispatch_chunks
from worker.to_task.pipeline import BATCH_SIZE
from worker.to_task.results import finalize
from worker.to_task.steps import ANNOTATE, FETCH_TASKS, FINALIZE, SPREAD

Make = Callable[..., World]


class Fate:
    """Kills the process at its n-th script, before Redis has seen it or after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, before: bool) -> None:
        self.left = at
        run = Scripts.run
        lock = threading.Lock()

        def killing(scripts: Scripts, name: str, keys: list[str], *args: Any) -> Any:
            if name == "renew_lock":  # from a thread of its own, at any time
                return run(scripts, name, keys, *args)
            with lock:  # outcomes are recorded by another thread
                self.left -= 1
                is_last = self.left == 0
            if is_last and before:
                raise KilledError
            answer = run(scripts, name, keys, *args)
            if is_last:
                raise KilledError
            return answer

        monkeypatch.setattr(Scripts, "run", killing)


def deliver_all(world: World) -> Finish | None:
    """Every message once more, as the broker and the sweep do; steps that the run has passed are dropped."""
    worker, fetched = world.worker, Delivery(outcome=Reschedule(0))
    while isinstance(fetched.outcome, Reschedule):
        fetched = worker.run_step(FETCH_TASKS, world.fetch_pages)
    worker.run_step(SPREAD, lambda run: dispatch_chunks(run, world.services))
    delivered = 0
    outcome: Outcome | None = None
    while outcome != Continue(FINALIZE):
        chunks = world.sender.chunks()
        if delivered == len(chunks):
            return None
        _, outcome = world.annotate_fully(chunks[delivered])
        delivered += 1
    end = worker.outcome_of(FINALIZE, lambda run: finalize(run, world.services))
    assert isinstance(end, Finish)
    return end


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", range(1, 60, 2))
def test_a_death_anywhere_loses_no_task_and_counts_none_twice(
    make_world: Make, monkeypatch: pytest.MonkeyPatch, clock: Clock, at: int, before: bool
) -> None:
    # Given a run of several pages and chunks, of which one task is bad, whose worker dies somewhere
    world = make_world(55, chunk=5)
    world.backend.page_size = 20
    world.host.failing = {7}
    fate = Fate(monkeypatch, at, before)
    try:
        deliver_all(world)
    except KilledError:
        world.sender.published.clear()
    clock.forward(60)

    # When everything is delivered again
    fate.left = -1
    end = None
    while end is None:
        end = deliver_all(world)

    # Then the counts are exact, and every task was written
    assert (end.result["success_count"], end.result["failed_count"]) == (54, 1)
    assert set(world.backend.annotated) == set(range(1, 56)) - {7}


def test_a_suspended_worker_writes_only_what_was_in_flight(make_world: Make) -> None:
    # Given a chunk of many batches, whose worker is suspended at its first write until another has its lock
    world = make_world(320, chunk=320)
    world.collect()
    lock = lock_key(JOB, f"{ANNOTATE.name}:0")

    def suspend(_: int) -> None:
        world.redis.set(lock, "of somebody else")

    world.backend.before_annotation = suspend

    # When it goes on
    work = lambda run: annotate(run, 0, world.services, world.runtime)  # noqa: E731
    delivery = world.worker.run_step(ANNOTATE, work, part="0", kwargs={"job": JOB, "chunk": 0})

    # Then it leaves the rest to the other, and is retried should that one die
    assert len(world.backend.annotations) <= 2 * BATCH_SIZE
    assert (delivery.ended, world.redis.get(lock)) == ("retried", "of somebody else")
    world.redis.delete(lock)
    world.backend.before_annotation = lambda task: None
    world.worker.run_step(ANNOTATE, work, part="0", kwargs=delivery.kwargs)
    assert sorted(world.backend.annotated) == list(range(1, 321))


def test_a_message_of_an_older_generation_is_dropped(make_world: Make) -> None:
    # Given a chunk that was rescheduled for the rest of its tasks
    world = make_world(80, chunk=100)
    world.collect()
    world.settings.worker_visibility_timeout_seconds = 0.0

    def deliver(**kwargs: Any) -> Delivery:
        message = {"job": JOB, "chunk": 0, **kwargs}
        work = lambda run: annotate(run, 0, world.services, world.runtime)  # noqa: E731
        return world.worker.run_step(ANNOTATE, work, part="0", kwargs=message)

    first = deliver()
    assert (first.ended, first.kwargs["generation"]) == ("retried", 1)
    written = len(world.backend.annotations)

    # When the first message is delivered once more
    assert deliver().ended == "acknowledged"

    # Then nothing was done by it, and the newer one goes on
    assert len(world.backend.annotations) == written
    assert deliver(generation=1).ended == "retried"
    assert len(world.backend.annotations) > written
