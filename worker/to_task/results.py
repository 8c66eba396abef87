"""The progress of a run's annotation, and its result at the end."""

from shared.statuses import JobStatus, ToTaskResult
from worker.runs.model import AnyRun, Finish, Outcome
from worker.runs.runs import Runs
from worker.services import Services
from worker.to_task.discover import TaskIndex
from worker.to_task.ledger import Ledger, RedisLedger
from worker.workflow.texts import Text, in_language

PROGRESS_STEP = "annotate_task_data"

MAX_LOGGED_FAILURES = 100
"""Failed tasks that are written to the run's log with their errors; the result holds more of them."""


def publish_progress(run: AnyRun, runs: Runs, ledger: RedisLedger) -> None:
    """Publish percent and metrics from the ledger, and log what failed since the last time."""
    counts = ledger.counts()
    stand_by = counts.total - counts.success - counts.failed
    runs.set_metrics(run, PROGRESS_STEP, success=counts.success, failed=counts.failed, stand_by=stand_by)
    runs.set_progress(run, PROGRESS_STEP, counts.percent)
    if counts.failed:
        _log_failures(run, runs, ledger)


def _log_failures(run: AnyRun, runs: Runs, ledger: RedisLedger) -> None:
    failures = ledger.pop_unreported_failures(MAX_LOGGED_FAILURES)
    if failures:
        lines = [f"Task {failure.task_id} failed: {failure.error}" for failure in failures]
        runs.events.log.append(run.job, "\n".join(lines), "warning")


def finalize(run: AnyRun, services: Services) -> Outcome:
    """End the run: SUCCEEDED with some failed tasks, FAILED when all failed (contract)."""
    ledger = RedisLedger(services.redis, run.job)
    publish_progress(run, services.runs, ledger)
    index = TaskIndex(services.redis, run.job, services.settings.worker_annotate_chunk)
    cursor = index.cursor()
    result = result_of(ledger, cursor.listing.warning(cursor.total))
    content = result.model_dump(mode="json")
    if result.failures:
        first = result.failures[0]
        failed, total = result.failed_count, result.total_tasks
        values = {"failed": failed, "total": total, "task": first.task_id, "error": first.error}
        why = in_language(run.message.language, Text.FAILED_TASKS, **values)
        services.runs.events.message(run.job, why, step="finalize", level="warning")
    if result.status is JobStatus.FAILED:
        content["error"] = result.message
    return Finish(result.status, content)


def result_of(ledger: Ledger, warning: str | None = None) -> ToTaskResult:
    """The result of a run from its ledger, and what users are to know of the list of its tasks."""
    counts = ledger.counts()
    all_failed = counts.failed == counts.total
    if all_failed:
        message = f"All {counts.total} tasks failed to annotate"
    else:
        message = f"Annotated {counts.success} of {counts.total} tasks, {counts.failed} failed"
        if counts.skipped:
            message += f", {counts.skipped} were annotated before"
    return ToTaskResult(
        status=JobStatus.FAILED if all_failed else JobStatus.SUCCEEDED,
        message=f"{message}; {warning}" if warning else message,
        total_tasks=counts.total,
        success_count=counts.success,
        failed_count=counts.failed,
        failures=ledger.failures(),
    )
