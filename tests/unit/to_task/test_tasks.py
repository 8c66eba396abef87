"""The steps of a run and their Celery tasks."""

from collections.abc import Callable
from typing import Any

import pytest
from celery.exceptions import Retry

from tests.harness.in_process_worker import celery_request
from tests.harness.pool_threads import NewThread
from tests.unit.to_task.world import World
from worker.pre_processor.waitlist import DETECT, DISPATCH
from worker.runs.bulkhead import Bulkhead, release_share
from worker.runs.model import Suspend
from worker.to_task import steps, tasks


def test_the_steps_of_a_run_come_one_after_the_other() -> None:
    way = [steps.INITIALIZE, steps.PREPARE, DETECT, DISPATCH, steps.FETCH_TASKS, steps.SPREAD, steps.FINALIZE]

    assert [step.position for step in way] == [10, 20, 30, 35, 50, 60, 70]
    assert (steps.ANNOTATE.position, steps.ANNOTATE.queue, steps.ANNOTATE.has_parts) == (60, "annotate", True)


def test_every_step_has_its_celery_task() -> None:
    celery_tasks = [
        tasks.initialize,
        tasks.prepare,
        tasks.fetch_tasks,
        tasks.spread,
        tasks.annotate,
        tasks.finalize,
    ]

    assert [task.name for task in celery_tasks] == [
        "to_task.initialize",
        "to_task.prepare",
        "to_task.fetch_tasks",
        "to_task.spread",
        "to_task.annotate",
        "to_task.finalize",
    ]
    assert tasks.to_task.name == "to_task"


@pytest.mark.parametrize("step", ["prepare", "annotate"])
def test_plugin_code_runs_within_the_share_of_its_release(
    make_world: Callable[..., World], new_thread: NewThread, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    # Given a worker of five threads, two of which run code of one release
    world, bulkhead = make_world(1), Bulkhead(lambda: 5)
    monkeypatch.setattr(tasks, "bulkhead", bulkhead)
    monkeypatch.setattr(tasks, "services", lambda: world.services)
    monkeypatch.setattr("worker.workflow.task.services", lambda: world.services)
    called: list[str] = []
    record = lambda run, *_: called.append(run.message.plugin) or Suspend()  # noqa: E731
    monkeypatch.setattr("worker.to_task.prepare.prepare", record)
    monkeypatch.setattr("worker.to_task.annotate.annotate", record)
    monkeypatch.setattr(tasks, "annotation_runtime", lambda: world.runtime)
    plugin = world.run.message.plugin
    busy = [new_thread(bulkhead) for _ in range(2)]
    assert all(thread.acquire(release_share(plugin)) for thread in busy)
    part = {"chunk": 0} if step == "annotate" else {}
    task: Any = getattr(tasks, step)
    monkeypatch.setattr(task.__class__, "apply_async", lambda *_, **__: None)

    def deliver() -> None:
        name = f"to_task.{step}" + (":0" if part else "")
        kwargs = {"job": "42", **part, "generation": world.runs.generations.newest("42", name)}
        with celery_request(task, kwargs):
            task.run("42", **part)

    # When a third call is due, then its step is retried later
    with pytest.raises(Retry):
        deliver()
    assert called == []

    # And when one of them has ended, it runs
    busy[1].release_all()
    deliver()
    assert called == [plugin]
