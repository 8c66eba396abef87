"""The last step of a deployment: register the application in the backend, once, and wake its waiting list."""

from dataclasses import replace

import structlog

from shared.statuses import JobStatus, ServeApplicationStatus
from worker.deploy.plan import DeployRun, plan_of, waitlist_name
from worker.platform import BackendClient, MalformedResponseError
from worker.pre_processor.shared_requests import SharedRequests
from worker.pre_processor.waitlist import wake
from worker.runs.model import Finish, Outcome, Reschedule, backend_job_id
from worker.services import Services

log = structlog.get_logger(__name__)

MAX_POST_ATTEMPTS = 5
RETRY_SECONDS = 1.0
MAX_ID_CHARS = 100


def register(run: DeployRun, services: Services) -> Outcome:
    """Post the application record, unless an earlier delivery did; the run ends SUCCEEDED."""
    runs = services.runs
    known = run.state.registered
    identifier, is_new = (known, False) if known is not None else _record_id(run, services)
    if identifier is None:
        return Reschedule(RETRY_SECONDS)
    runs.store.update_state(run, replace(run.state, registered=identifier))
    # The application may have been removed since an earlier delivery registered it.
    application = waitlist_name(run.message, services)
    SharedRequests(services.redis, application).set(plan_of(run).requests_at_once)
    wake(runs, application, is_running=is_new)
    runs.set_progress(run, "register", 100)
    return Finish(JobStatus.SUCCEEDED, {"serve_application": identifier})


def _record_id(run: DeployRun, services: Services) -> tuple[int | str | None, bool]:
    """The id of the application record, and whether it was posted now; None when the step has to look again.

    Errors of the look itself are raised: the step is retried for them as for any unavailable dependency.
    """
    backend = services.backend(run.message.tenant)
    # Looked for even if no post is noted: a Redis that was restored after a crash lacks its last second.
    found = _find_registered(backend, run.job)
    if found is not None:
        return found, False
    posted = run.state.post_attempts
    services.runs.store.update_state(run, replace(run.state, post_attempts=posted + 1))
    if not services.runs.holds_lease(run):
        # This process was suspended since the look, and another worker has the step: look again.
        return None, False
    try:
        answer = backend.create_serve_application(
            job=backend_job_id(run.job),
            status=ServeApplicationStatus.RUNNING.value,
            data=_application_data(run),
        )
        return _id_of(answer), True
    except MalformedResponseError:
        # The backend may have stored the record all the same: look before posting another one.
        if posted >= MAX_POST_ATTEMPTS:
            raise
        return None, False


def _find_registered(backend: BackendClient, job: str) -> int | str | None:
    """The id of this job's record. An older backend ignores the query and answers with all records."""
    for record in backend.list_serve_applications(job=backend_job_id(job))["results"]:
        if str(record.get("job")) == job:
            return _id_of(record)
    return None


def _application_data(run: DeployRun) -> dict[str, str | None]:
    """The record's `data`. It names the release, because a waiting list ignores records of other releases."""
    plan = plan_of(run)
    code, _, version = run.message.plugin.partition("@")
    return {
        "name": plan.app_name,
        "plugin_code": code,
        "version": version,
        "route_prefix": plan.route_prefix,
        "digest": plan.digest,
    }


def _id_of(record: object) -> int | str:
    found = record.get("id") if isinstance(record, dict) else None
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    # The id goes into the job's result, and a lone surrogate would make the end impossible to report.
    if isinstance(found, str) and 0 < len(found) <= MAX_ID_CHARS and found.isprintable():
        return found
    raise MalformedResponseError("malformed answer: an application record without an id")
