"""Bring a run back whose message was lost."""

from worker.runs.live import run_member
from worker.runs.outcomes import Step
from worker.runs.runs import Runs
from worker.runs.store import UnknownRunError

RUN_PREFIX = "run:"


def recover_run(job: str, runs: Runs) -> None:
    """Send the message of the step at which the run stands, or of the report of its end."""
    try:
        run = runs.store.load(job)
    except UnknownRunError:
        runs.live.forget(run_member(job))
        return
    if runs.store.is_sealed(job):
        runs.live.forget(run_member(job))
        return
    if run.end is not None:
        # Not a sign of life: while the backend is away, each copy comes later than the one before.
        runs.send_report(job)
        return
    name = run.step or f"{run.message.task}.initialize"
    generation = runs.store.newest_poll(job, name)
    step = Step(name, run.position)
    queue = runs.store.step_queue(job) or run.queue
    runs.sender.send(step, queue, {"job": job, "generation": generation})
