"""The step that checks a run's parameters against the plugin and the project before anything is written."""

from dataclasses import replace
from typing import Any, Protocol

from shared.messages import JsonObject, ToTaskMessage, ToTaskMethod, ToTaskParams
from shared.validation import unknown_parameters
from worker.platform import NotFoundError
from worker.plugins import PluginCallError
from worker.plugins.requests import WHOLE_RUN
from worker.pool import pool
from worker.pre_processor.waitlist import DETECT
from worker.runs.model import Continue, Outcome, RunFailedError
from worker.services import Services
from worker.to_task.steps import ANNOTATE, FETCH_TASKS, ToTaskRun
from worker.whole_run.run import SUBMIT
from worker.workflow.ended_runs import EndedRun, EndedRuns

PROGRESS_STEP = "prepare"


class ProjectApi(Protocol):
    """The calls of the backend that the checks need."""

    def get_project(self, project: int) -> dict[str, Any]: ...
    def get_data_collection(self, collection: int) -> dict[str, Any]: ...


def prepare(run: ToTaskRun, services: Services) -> Outcome:
    """Check the parameters; a run by inference goes on to its pre-processor, one by file to its tasks."""
    message = run.message
    if message.only_failed_of is not None:
        run_to_retry(run, services)
    whole_run = check_params(run, services)
    if whole_run is not None:
        check_whole_run(message)
        services.runs.store.update_state(run, replace(run.state, whole_run=whole_run))
        return Continue(SUBMIT)
    warm_up(run, services)
    check_project(services.backend(message.tenant), message.params)
    if message.params.method is ToTaskMethod.INFERENCE:
        services.runs.set_progress(run, PROGRESS_STEP, 10)
        return Continue(DETECT)
    services.runs.set_progress(run, PROGRESS_STEP, 100)
    return Continue(FETCH_TASKS)


def run_to_retry(run: ToTaskRun, services: Services) -> EndedRun:
    """The ended run whose failed tasks are to be annotated; `RunFailedError` where that is not possible."""
    message, ended_runs = run.message, EndedRuns(services.redis)
    job = message.only_failed_of or ""
    ended, what = ended_runs.get(job), f"only_failed_of: the run of job {job}"
    if ended is None:
        store = services.runs.store
        if store.exists(job) and not store.has_ended(job):
            raise RunFailedError(f"{what} has not ended")
        days = services.settings.worker_ended_runs_max_age_seconds / (24 * 60 * 60)
        raise RunFailedError(f"{what} is not known: an ended run is kept for {days:g} days at most")
    own_tenant = services.settings.synapse_tenant
    is_same_tenant = (ended.arguments.get("tenant") or own_tenant) == (message.tenant or own_tenant)
    if ended.task != message.task or ended.project != message.params.project or not is_same_tenant:
        raise RunFailedError(f"{what} is none of {message.task} for the same tenant and project")
    known = ended_runs.count_failed_tasks(job)
    if known != ended.failed:
        raise RunFailedError(
            f"{what} has {ended.failed} failed tasks, of which {known} are kept: workers of an older release"
            " recorded the others"
        )
    return ended


def check_whole_run(message: ToTaskMessage) -> None:
    """An action that runs whole chooses its tasks by its own code."""
    options = {
        "only_failed_of": message.only_failed_of is not None,
        "skip_annotated": message.skip_annotated,
        "dry_run": message.dry_run,
    }
    if asked := [name for name, is_asked in options.items() if is_asked]:
        raise RunFailedError(f"The plugin's action runs whole, by its own code, without {', '.join(asked)}")


def warm_up(run: ToTaskRun, services: Services) -> None:
    """Let the plugin's process for conversions start now, so that the first chunk does not wait for it.

    Each worker has its own: one that gets no chunks would start one that it never calls and never ends.
    """
    if pool.consumes(ANNOTATE.queue or run.queue):
        services.host.warm_up(*services.action_of(run))


def check_params(run: ToTaskRun, services: Services) -> JsonObject | None:
    """Validate the parameters with the plugin's own model, in the plugin's host.

    A release that declares none of its own is asked once: its keys are kept by the checksum of its content.
    Returns how the action runs whole, if it does.
    """
    release, request = services.action_of(run)
    key, failure = (release.checksum, request.entrypoint), ""
    declared = services.declared_params.get(key)
    if declared is not None:
        if unknown := unknown_parameters(request.params, declared):
            raise RunFailedError(f"The plugin refuses the parameters: {unknown}")
        return None
    try:
        answer = services.host.call(release, request, "check_params", {WHOLE_RUN: True})
        keys = answer.get("keys") if isinstance(answer, dict) else None
        if isinstance(keys, list):
            services.declared_params[key] = frozenset(map(str, keys))
        whole_run: JsonObject | None = answer.get(WHOLE_RUN) if isinstance(answer, dict) else None
        return whole_run
    except PluginCallError as error:
        is_rejection = error.error_type == "ParamsError"
        said = error.message if is_rejection else str(error)
        failure = f"The plugin {'refuses the parameters' if is_rejection else 'cannot be used'}: {said}"
    raise RunFailedError(failure)


def check_project(backend: ProjectApi, params: ToTaskParams) -> None:
    """The project exists, and for files its data collection has the target specification."""
    try:
        project = backend.get_project(params.project)
    except NotFoundError:
        raise RunFailedError(f"Project {params.project} does not exist") from None
    if params.method is not ToTaskMethod.FILE:
        return
    collection = project.get("data_collection")
    if collection is None:
        raise RunFailedError(f"Project {params.project} has no data collection")
    try:
        found = backend.get_data_collection(collection).get("file_specifications")
    except NotFoundError:
        raise RunFailedError(f"Data collection {collection} does not exist") from None
    specifications = found if isinstance(found, list) else []
    names = [str(each.get("name")) for each in specifications if isinstance(each, dict)]
    if params.target_specification_name not in names:
        raise RunFailedError(
            f"Data collection {collection} has no file specification {params.target_specification_name!r};"
            f" it has: {', '.join(names) or 'none'}"
        )
