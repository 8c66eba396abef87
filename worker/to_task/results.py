"""How far the annotation of a run is, and what it comes to at the end."""

from shared.statuses import JobStatus, ToTaskResult
from worker.runs.model import Finish, Outcome, Run
from worker.runs.runs import Runs
from worker.services import Services
from worker.to_task.ledger import Ledger, RedisLedger

PROGRESS = "annotate_task_data"

FAILURES_TOLD = 100
"""Failed tasks that stand in the run's log, each with its error; the result has more of them."""


def tell(run: Run, runs: Runs, ledger: RedisLedger) -> None:
    """Percent and metrics as the ledger has them, and what failed since the last time."""
    counts = ledger.counts()
    stand_by = counts.total - counts.success - counts.failed
    runs.set_metrics(run, PROGRESS, success=counts.success, failed=counts.failed, stand_by=stand_by)
    runs.set_progress(run, PROGRESS, counts.percent)
    if counts.failed:
        _tell_failures(run, runs, ledger)


def _tell_failures(run: Run, runs: Runs, ledger: RedisLedger) -> None:
    failures = ledger.take_untold(FAILURES_TOLD)
    if failures:
        lines = [f"Task {failure.task_id} failed: {failure.error}" for failure in failures]
        runs.events.log.append(run.job, "\n".join(lines), "warning")


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
