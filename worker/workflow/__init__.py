"""What the workflows share: their base task, the door for messages, refusals, the first step."""

from worker.workflow.arguments import Count
from worker.workflow.beginning import begin_run, status_of
from worker.workflow.reading import mistakes
from worker.workflow.refusals import REFUSE_JOB
from worker.workflow.task import WorkflowTask

__all__ = ["REFUSE_JOB", "Count", "WorkflowTask", "begin_run", "mistakes", "status_of"]
