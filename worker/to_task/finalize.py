"""The end of a run: its counts, its failures, and whether that is a success."""

from shared.statuses import JobStatus, ToTaskResult
from worker.runs.model import Finish, Outcome, Run
from worker.services import Services
from worker.to_task.ledger import Ledger
from worker.to_task.news import tell
from worker.to_task.redis_ledger import RedisLedger


def finalize(run: Run, services: Services) -> Outcome:
    """End the run. Some failed tasks do not fail it, all of them do."""
    ledger = RedisLedger(services.redis, run.job)
    tell(run, services.runs, ledger)
    result = result_of(ledger)
    content = result.model_dump(mode="json")
    if result.failures:
        first = result.failures[0]
        why = (
            f"{result.failed_count} of {result.total_tasks} tasks failed; task {first.task_id}: {first.error}"
        )
        services.runs.events.message(run.job, why, step="finalize", level="warning")
    if result.status is JobStatus.FAILED:
        content["error"] = result.message
    return Finish(result.status, content)


def result_of(ledger: Ledger) -> ToTaskResult:
    """What the ledger comes to."""
    counts = ledger.counts()
    all_failed = counts.failed == counts.total
    if all_failed:
        message = f"All {counts.total} tasks failed to annotate"
    else:
        message = f"Annotated {counts.success} of {counts.total} tasks, {counts.failed} failed"
    return ToTaskResult(
        status=JobStatus.FAILED if all_failed else JobStatus.SUCCEEDED,
        message=message,
        total_tasks=counts.total,
        success_count=counts.success,
        failed_count=counts.failed,
        failures=ledger.failures(),
    )
