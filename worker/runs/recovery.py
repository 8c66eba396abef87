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
    if run.end is not None:
        runs.report_end(job)
        return
    name = run.step or f"{run.message.task}.initialize"
    generation = runs.store.newest_poll(job, name)
    step = Step(name, run.position)
    runs.sender.send(step, run.queue, {"job": job, "generation": generation})
