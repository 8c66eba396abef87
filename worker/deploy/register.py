"""Tell the backend of the application, once, and wake who waits for it."""

from typing import Any

import structlog

from shared.statuses import JobStatus, ServeApplicationStatus
from worker.deploy.plan import deploy_message, plan_of, waitlist_of
from worker.platform import BackendClient, MalformedResponseError
from worker.pre_processor.waitlist import wake
from worker.runs.model import Finish, Outcome, Reschedule, Run, backend_job_id
from worker.services import Services

log = structlog.get_logger(__name__)

REGISTERED = "registered"
POSTED = "register_attempts"
MOST_ATTEMPTS = 5
LOOK_AGAIN_SECONDS = 1.0
LONGEST_ID = 100


def register(run: Run, services: Services) -> Outcome:
    """Post the application record, unless a first delivery did; the run ends SUCCEEDED."""
    runs = services.runs
    identifier = _identifier(run, services)
    if identifier is None:
        return Reschedule(LOOK_AGAIN_SECONDS)
    runs.store.note(run.job, REGISTERED, identifier)
    wake(runs, waitlist_of(deploy_message(run), services))
    runs.set_progress(run, "register", 100)
    return Finish(JobStatus.SUCCEEDED, {"serve_application": identifier})


def _identifier(run: Run, services: Services) -> int | str | None:
    """The record's id; None when the step is to look again.

    What is wrong with the look itself is raised: it is waited for as for any neighbour, and not for ever.
    """
    known: int | str | None = run.findings.get(REGISTERED)
    if known is not None:
        return known
    backend = services.backend(run.message.tenant)
    # Also where nothing is known of a post: a Redis that lost its machine comes back without its last second.
    found = _registered(backend, run.job)
    if found is not None:
        return found
    posted = run.findings.get(POSTED, 0)
    services.runs.store.note(run.job, POSTED, posted + 1)
    if not services.runs.holds_lease(run):
        return None  # Suspended since the look, for so long that another has the step: look what it did.
    try:
        answer = backend.create_serve_application(
            job=backend_job_id(run.job), status=ServeApplicationStatus.RUNNING.value, data=_data(run)
        )
        return _id_of(answer)
    except MalformedResponseError:
        # The record may be there all the same: look before posting another one.
        if posted >= MOST_ATTEMPTS:
            raise
        return None


def _registered(backend: BackendClient, job: str) -> int | str | None:
    """This job's record; an older backend may answer with everybody's."""
    for record in backend.list_serve_applications(job=backend_job_id(job))["results"]:
        if str(record.get("job")) == job:
            return _id_of(record)
    return None


def _data(run: Run) -> dict[str, Any]:
    """Names the release: RUNNING of another one does not count for those who wait."""
    plan = plan_of(run)
    code, _, version = run.message.plugin.partition("@")
    return {
        "name": plan["app_name"],
        "plugin_code": code,
        "version": version,
        "route_prefix": plan["route_prefix"],
        "digest": plan["digest"],
    }


def _id_of(record: object) -> int | str:
    found = record.get("id") if isinstance(record, dict) else None
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    # It goes into the job's result: half a character would keep the end from ever being told.
    if isinstance(found, str) and 0 < len(found) <= LONGEST_ID and found.isprintable():
        return found
    raise MalformedResponseError("malformed answer: an application record without an id")
