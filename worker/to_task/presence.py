"""Whether the pre-processor of a run still runs, asked when inferences fail.

Without the question a run whose pre-processor went away would fail its tasks one by one, for hours.
"""

from worker.pre_processor import classify_serve_app
from worker.pre_processor.dispatch import FINDING, application_failed, timed_out
from worker.pre_processor.serve_application import PreProcessor, records
from worker.runs.model import Run
from worker.services import Services

GONE = "pre_processor_gone"
"""Finding: Redis's time at which it was first found away, or None."""


def is_away(run: Run, services: Services) -> bool:
    """Whether to wait for it; raises the waiting room's errors when it has been away for too long."""
    target = PreProcessor.from_finding(run.findings[FINDING])
    bucket, status = classify_serve_app(records(services.backend(run.message.tenant), target))
    store, since = services.runs.store, run.findings.get(GONE)
    if bucket == "running":
        if since is not None:
            store.note(run.job, GONE, None)
        return False
    now = float(services.redis.time()[0])
    if since is None:
        store.note(run.job, GONE, now)
        text = f"Pre-processor {target.release} does not run any more: waiting for it."
        services.runs.events.message(run.job, text, step="annotate_task_data", level="warning")
    elif now - since > services.settings.worker_pre_processor_timeout_seconds:
        raise application_failed(str(status)) if bucket == "failed" else timed_out()
    return True
