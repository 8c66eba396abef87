"""The steps of a run of `to_task`. An inference walks through the waiting room after `prepare`."""

from worker.pre_processor.waitlist import READY
from worker.runs.model import Step

INITIALIZE = Step("to_task.initialize", position=10)
PREPARE = Step("to_task.prepare", position=20)

FETCH_TASKS = READY
"""`to_task.fetch_tasks`: where the waiting room lets runs out."""

SPREAD = Step("to_task.spread", position=60)
"""Opens the window of chunks; what the sweep sends again while chunks are worked."""

ANNOTATE = Step("to_task.annotate", position=60, queue="annotate", has_parts=True)
"""One chunk; its message carries the number as `chunk`."""

FINALIZE = Step("to_task.finalize", position=70)
