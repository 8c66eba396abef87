"""Hand the application to Serve, once, and return at once."""

from worker.deploy.cleanup import remove_if_never_ran
from worker.deploy.cluster import Cluster
from worker.deploy.findings import Submission, plan_of, redis_now, submission_of
from worker.deploy.ownership import Ownership
from worker.deploy.packages import DeployedPackages
from worker.deploy.plugin_call import call
from worker.deploy.steps import AWAIT_RUNNING, PROGRESS
from worker.runs.model import Continue, Outcome, Run, RunFailedError
from worker.services import Services

SUBMITTED = "submitted"


def serve_run(run: Run, services: Services, cluster: Cluster) -> Outcome:
    """Submit, unless exactly this is there already: put there before, or by this step's first delivery."""
    plan, runs = plan_of(run), services.runs
    name = plan["app_name"]
    state = cluster.state(name)
    owner = Ownership(services, name)
    submission = submission_of(run)
    same = plan["digest"] in state.digests
    submitted = same and SUBMITTED in run.findings
    here = same and state.bucket != "failed"
    # Another run's deployment that never ran is no reason to keep it should this run fail as well. It may
    # have run by the time of a second delivery.
    existed = state.exists and (state.bucket == "running" or owner.existed_before())
    if submission is None:
        submission = Submission(existed=existed, at=redis_now(runs))
        submission.note(run, runs)
    owner.take(run.job, submission.existed or existed)
    if here and not submitted:
        runs.events.message(run.job, f"{name} is there already: nothing to submit.", step=PROGRESS)
    elif not submitted:
        try:
            answer = call(run, services, "submit", plan)
        except RunFailedError:
            remove_if_never_ran(run, services, cluster)
            raise
        for message in answer.get("messages") or []:
            runs.events.message(run.job, str(message), step=PROGRESS)
        runs.store.note(run.job, SUBMITTED, True)
    DeployedPackages(services).remember(name, run.message.plugin)
    runs.advance(run, PROGRESS, 30)
    return Continue(AWAIT_RUNNING)
