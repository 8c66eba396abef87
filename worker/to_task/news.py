"""How far the annotation of a run is, for whoever listens."""

from worker.runs.record import Run
from worker.runs.runs import Runs
from worker.to_task.ledger import Ledger

PROGRESS = "annotate_task_data"


def tell(run: Run, runs: Runs, ledger: Ledger) -> None:
    """Percent and metrics as the ledger has them."""
    counts = ledger.counts()
    stand_by = counts.total - counts.success - counts.failed
    runs.measure(run, PROGRESS, success=counts.success, failed=counts.failed, stand_by=stand_by)
    runs.advance(run, PROGRESS, counts.percent)
