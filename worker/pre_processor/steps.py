"""The steps on a run's way through the waiting room."""

from worker.runs.model import Step

DETECT = Step("pre_processor.detect", position=30)
DISPATCH = Step("pre_processor.dispatch", position=35)

READY = Step("to_task.fetch_tasks", position=50)
"""Where a run goes on whose pre-processor runs."""

AWAIT_READY = Step("pre_processor.await_ready", position=0, queue="to_task")
"""The poll of a room: not a step of a run."""
