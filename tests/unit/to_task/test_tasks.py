"""The steps of a run and their Celery tasks."""

from worker.pre_processor.waitlist import DETECT, DISPATCH
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
