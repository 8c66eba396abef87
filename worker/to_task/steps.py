"""The steps of a run of `to_task`, its message, and the reasons why a task is not annotated."""

from dataclasses import dataclass
from typing import TypeAlias

from shared.messages import ToTaskMessage
from worker.pre_processor import waitlist
from worker.pre_processor.waitlist import PreProcessorState
from worker.runs.model import Run, Workflow
from worker.runs.state import stored_field


@dataclass(frozen=True)
class ToTaskState(PreProcessorState):
    """What the steps of a run leave for each other."""

    unavailable_since: float | None = stored_field("pre_processor_gone", None)
    """Redis's time at which the pre-processor was first found unavailable."""
    stuck: tuple[int, float] | None = stored_field("stuck", None, decode=tuple)
    """How many tasks were done when a service first put tasks off, and Redis's time at which it did."""


TO_TASK = Workflow(ToTaskMessage, ToTaskState)
ToTaskRun: TypeAlias = Run[ToTaskMessage, ToTaskState]

INITIALIZE = TO_TASK.step("to_task.initialize", position=10)
PREPARE = TO_TASK.step("to_task.prepare", position=20)

# Named where runs are resumed to it.
FETCH_TASKS = TO_TASK.step(waitlist.FETCH_TASKS.name, waitlist.FETCH_TASKS.position)

SPREAD = TO_TASK.step("to_task.spread", position=60)
"""Where a run stands while its chunks are in flight; the sweep publishes this step, which repeats them."""

ANNOTATE = TO_TASK.step("to_task.annotate", position=60, queue="annotate", has_parts=True)
"""One chunk; its message carries the number as `chunk`."""

FINALIZE = TO_TASK.step("to_task.finalize", position=70)


class InferencePendingError(Exception):
    """The task's inference is running; its ticket is polled again later."""


class TaskAnnotatedError(Exception):
    """The task was annotated before, and the run leaves such tasks alone."""


class TicketNotFoundError(Exception):
    """The replica that answered a poll does not know the ticket; another one may."""
