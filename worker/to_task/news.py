"""How far the annotation of a run is, for whoever listens."""

from worker.runs.model import Run
from worker.runs.runs import Runs
from worker.to_task.redis_ledger import RedisLedger

PROGRESS = "annotate_task_data"

FAILURES_TOLD = 100
"""Failed tasks that stand in the run's log, each with its error; the result has more of them."""


def tell(run: Run, runs: Runs, ledger: RedisLedger) -> None:
    """Percent and metrics as the ledger has them, and what failed since the last time."""
    counts = ledger.counts()
    stand_by = counts.total - counts.success - counts.failed
    runs.measure(run, PROGRESS, success=counts.success, failed=counts.failed, stand_by=stand_by)
    runs.advance(run, PROGRESS, counts.percent)
    if counts.failed:
        _tell_failures(run, runs, ledger)


def _tell_failures(run: Run, runs: Runs, ledger: RedisLedger) -> None:
    failures = ledger.take_untold(FAILURES_TOLD)
    if failures:
        lines = [f"Task {failure.task_id} failed: {failure.error}" for failure in failures]
        runs.events.log.say(run.job, "\n".join(lines), "warning")
