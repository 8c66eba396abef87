"""The first step on the way: which pre-processor does the run need, and does it run already?"""

from shared.messages import ToTaskMessage, ToTaskParams
from worker.pre_processor.classify import classify_serve_app
from worker.pre_processor.steps import DISPATCH, READY
from worker.pre_processor.target import find, records_if_legible
from worker.runs.model import Continue, Outcome, Run
from worker.services import Services

FINDING = "pre_processor"
"""What later steps read: `{"code", "version", "config", "agent"}`."""


def detect(run: Run, services: Services) -> Outcome:
    """Note the pre-processor; go on to the tasks when it runs, else to the waiting room."""
    params = params_of(run)
    if params.pre_processor is None:
        raise RuntimeError("pre_processor is not set")  # the message's own check refuses this before
    backend = services.backend(run.message.tenant)
    target = find(backend, params.pre_processor, params.agent)
    services.runs.store.note(run.job, FINDING, target.to_finding())
    services.runs.advance(run, "prepare", 30)
    running = classify_serve_app(records_if_legible(backend, target))[0] == "running"
    return Continue(READY if running else DISPATCH)


def params_of(run: Run) -> ToTaskParams:
    """The parameters of a run that only `to_task` has."""
    if not isinstance(run.message, ToTaskMessage):
        raise TypeError(f"{run.message.task} needs no pre-processor")
    return run.message.params
