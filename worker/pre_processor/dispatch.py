"""Detect whether the pre-processor runs; join its waiting list; one run of all dispatches the deployment."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from shared.messages import DISPATCH_DEFAULTS, RESOURCE_KEYS, Job
from worker.platform import (
    ClientConnectionError,
    ClientError,
    HTTPError,
    MalformedResponseError,
    clean_exception,
    contains_secret,
    error_type,
)
from worker.platform.agent import denial_reasons
from worker.pre_processor.diagnosis import PROGRESS
from worker.pre_processor.serve_application import (
    PreProcessor,
    classify_serve_app,
    find_pre_processor,
    list_recent_records_or_empty,
    list_records,
    snapshot_of,
)
from worker.pre_processor.waitlist import (
    DISPATCH,
    FETCH_TASKS,
    FIRST_POLL_SECONDS,
    PreProcessorRun,
    Waitlist,
    WaitlistName,
    pre_processor_of,
    schedule_poll,
    wake,
)
from worker.runs.bulkhead import bulkhead
from worker.runs.heartbeat import run_member
from worker.runs.model import Continue, Outcome, Reschedule, Suspend
from worker.runs.runs import Runs
from worker.services import Services
from worker.workflow.agent_task import CLUSTER
from worker.workflow.capacity import wanted_and_free
from worker.workflow.texts import Text, in_language

log = structlog.get_logger(__name__)

BLOCKED = "Pre-processor deployment blocked by capacity gate ({reasons})"
DISPATCH_FAILED = "Pre-processor deployment dispatch failed ({error_type})"

GATEWAY_STATUSES = frozenset({502, 504})
"""Errors of a gateway before the backend, which may have passed the request on all the same."""

NEVER_SENT = ("nobody listens", "host name is unknown", "certificate is not trusted")
"""In the text of a connection error: the request was not sent. A connection that was lost may have broken
after the backend had read the request."""

_JOB: TypeAdapter[str] = TypeAdapter(Job)


def detect(run: PreProcessorRun, services: Services) -> Outcome:
    """Store the pre-processor; go on to the tasks when it runs or for a dry run, else to the waiting list."""
    params = run.message.params
    if params.pre_processor is None:
        raise RuntimeError("pre_processor is not set")  # the validation of the message rejects this earlier
    backend = services.backend(run.message.tenant)
    target = find_pre_processor(backend, params.pre_processor, params.agent)
    services.runs.store.update_state(run, replace(run.state, pre_processor=target))
    services.runs.set_progress(run, PROGRESS, 30)
    bucket, _ = classify_serve_app(list_recent_records_or_empty(backend, target))
    goes_on = bucket == "running" or run.message.dry_run
    return Continue(FETCH_TASKS if goes_on else DISPATCH)


def dispatch(run: PreProcessorRun, services: Services) -> Outcome:
    """Join the waiting list. The run that gets the claim dispatches, once; the poll resumes all runs."""
    target = pre_processor_of(run)
    body = dispatch_body(target, run.message.language)
    runs, timeout = services.runs, services.settings.worker_pre_processor_timeout_seconds
    name = WaitlistName.of(run.message.tenant or services.settings.synapse_tenant, target)
    waitlist = Waitlist(runs.redis, name)
    # Registered before the waiting list says that a poll is scheduled: if this process dies before it has
    # published the poll, the sweep finds the waiting list overdue.
    runs.heartbeats.register(name.member)
    joined = waitlist.join(run.job, timeout, is_retry=run.is_retry)
    if joined.poll:
        schedule_poll(runs, name, joined.poll, FIRST_POLL_SECONDS if joined.claim else 0.0)
    # No message of this run is under way until the poll resumes it.
    runs.heartbeats.schedule(run_member(run.job), timeout)
    runs.set_progress(run, PROGRESS, 60)
    if joined.claim is not None:
        return _send_dispatch(run, services, waitlist, joined.claim, target, body)
    if joined.is_new:
        kind = Text.WAITS_FOR_JOB if joined.job else Text.WAITS_FOR
        text = in_language(run.message.language, kind, release=target.release, job=joined.job)
        runs.events.message(run.job, text, step=PROGRESS, in_log=False)
    return Suspend()


def _send_dispatch(
    run: PreProcessorRun,
    services: Services,
    waitlist: Waitlist,
    token: str,
    target: PreProcessor,
    body: Mapping[str, object],
) -> Outcome:
    backend, runs = services.backend(run.message.tenant), services.runs
    try:
        records = list_records(backend, target)
    except (ClientError, OSError) as error:
        log.warning("look before dispatch failed", error_type=type(error).__name__)
        return Reschedule(min(1.0, runs.timing.max_countdown))
    if classify_serve_app(records)[0] == "running":
        waitlist.clear_dispatch(token)  # it has started since `detect`: the poll resumes all runs
        return Suspend()
    # The claim is the run's: however many wait, one of them asks.
    with bulkhead.acquire(CLUSTER) as acquired:
        if not acquired:
            return Reschedule(min(1.0, runs.timing.max_countdown), keeps_retries=True)
        reasons = _denial_reasons(run, services, target)
    if reasons is not None:
        return _block(waitlist, token, BLOCKED.format(reasons=reasons), runs)
    if not waitlist.mark_sent(token, snapshot_of(records)):
        return Suspend()  # the claim expired while this process was suspended, and another run has it
    try:
        job = dispatched_job(backend.run_plugin(target.code, body))
    except (ClientError, OSError) as error:
        failure = error
    else:
        waitlist.mark_known(token, job)
        log.info("pre-processor dispatched", release=target.release, dispatched=job)
        text = in_language(run.message.language, Text.DISPATCHED, release=target.release, job=job)
        runs.events.message(run.job, text, step=PROGRESS, in_log=False)
        return Suspend()
    failed = dispatch_failed(failure)
    waitlist.mark_failed(token, str(failed), maybe_accepted=is_maybe_accepted(failure))
    wake(runs, waitlist.name)
    raise failed


def _denial_reasons(run: PreProcessorRun, services: Services, target: PreProcessor) -> list[Any] | None:
    """The agent's reasons against the deployment, None where it has none.

    An agent that cannot be asked is no reason: the deployment's own gate asks it again.
    """
    resources = declared_resources(target.config)
    try:
        agent_client = services.agent(target.agent, run.message.tenant)
        if agent_client is not None:
            # What a dispatch has by default gives way to the code that is deployed, so it blocks nothing.
            resources = {"num_cpus": 0.0, **resources}
            replicas = int(resources.get("num_replicas", 1))
            reasons = denial_reasons(
                agent_client,
                app_name=target.release,
                agent=target.agent,
                resources=resources,
                replicas=replicas,
            )
            if reasons is not None:
                text = wanted_and_free(run.message.language, agent_client, resources, replicas)
                services.runs.events.message(run.job, text, step=PROGRESS, level="warning")
            return reasons
        text = in_language(run.message.language, Text.NOT_CHECKED)
    except (ClientError, OSError) as error:
        log.warning("capacity not checked before dispatch", error_type=error_type(error))
        text = in_language(run.message.language, Text.CHECK_FAILED, error=error_type(error))
    services.runs.events.message(run.job, text, step=PROGRESS, level="warning")
    return None


def _block(waitlist: Waitlist, token: str, message: str, runs: Runs) -> Outcome:
    """Fail all runs that wait: each would be denied the same."""
    if not waitlist.mark_failed(token, message, maybe_accepted=False):
        return Suspend()  # the claim expired while the agent was asked, and another run has it
    wake(runs, waitlist.name)
    raise RuntimeError(message)


def is_maybe_accepted(error: Exception) -> bool:
    """Whether the backend may have dispatched in spite of the error."""
    if isinstance(error, HTTPError):
        return error.status_code in GATEWAY_STATUSES
    if isinstance(error, ClientConnectionError):
        return not any(reason in str(error) for reason in NEVER_SENT)
    return not isinstance(error, ConnectionRefusedError)


def dispatch_failed(cause: BaseException) -> RuntimeError:
    """The error for a failed dispatch; `__cause__` is what the client raised, without secrets."""
    error = RuntimeError(DISPATCH_FAILED.format(error_type=error_type(cause)))
    error.__cause__ = clean_exception(cause)
    return error


def dispatch_body(target: PreProcessor, language: str | None = None) -> dict[str, object]:
    """The body of `POST plugins/{code}/run/` that deploys `target`, without undeclared or null keys.

    `language`: that of the run that dispatches it.
    """
    body: dict[str, object] = {
        "agent": target.agent,
        "action": "deployment",
        "params": dispatch_params(target.config),
        "version": target.version,
    }
    return body if language is None else {**body, "language": language}


def dispatch_params(config: Mapping[str, Any]) -> dict[str, int | float]:
    """`num_cpus` and `num_gpus`, and `num_replicas` and `memory` (bytes) where the release declares them.

    Raises `RuntimeError` for values that no cluster could provide.
    """
    return {**DISPATCH_DEFAULTS, **declared_resources(config)}


def declared_resources(config: Mapping[str, Any]) -> dict[str, int | float]:
    """Those of `dispatch_params` that the release declares; raises as it does."""
    declared = _required_resources(config)
    found = {
        "num_cpus": _number(declared, *RESOURCE_KEYS["num_cpus"]),
        "num_gpus": _number(declared, *RESOURCE_KEYS["num_gpus"]),
        "num_replicas": _whole_number(declared, 1, *RESOURCE_KEYS["num_replicas"]),
        "memory": _whole_number(declared, 0, *RESOURCE_KEYS["memory"]),
    }
    return {name: value for name, value in found.items() if value is not None}


def dispatched_job(answer: object) -> str:
    """The job in the answer to a dispatch, `id` or `job_id`; raises `MalformedResponseError`."""
    given = None
    if isinstance(answer, dict):
        given = answer["id"] if answer.get("id") is not None else answer.get("job_id")
    try:
        job = _JOB.validate_python(given)
        if not contains_secret(job):
            return job
    except ValidationError:
        pass
    raise MalformedResponseError("malformed answer: no job")


def _required_resources(config: Mapping[str, Any]) -> Mapping[str, Any]:
    actions = config.get("actions")
    inference = actions.get("inference") if isinstance(actions, Mapping) else None
    declared = inference.get("required_resources") if isinstance(inference, Mapping) else None
    if declared is None:
        return {}
    if not isinstance(declared, Mapping):
        raise RuntimeError("The pre-processor's required_resources is not a mapping")
    return declared


def _number(declared: Mapping[str, Any], *names: str) -> int | float | None:
    """The first of `names` that is declared."""
    for name in names:
        value = declared.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _invalid_resource(name, "is not a number")
        # Not math.isfinite, which a whole number of 400 digits overflows.
        if not 0 <= value <= sys.float_info.max:
            raise _invalid_resource(name, "must be a number from 0 up")
        return value
    return None


def _whole_number(declared: Mapping[str, Any], least: int, *names: str) -> int | None:
    for name in names:
        value = _number(declared, name)
        if value is None:
            continue
        if value != int(value) or value < least:
            raise _invalid_resource(name, f"must be a whole number from {least} up")
        return int(value)
    return None


def _invalid_resource(name: str, why: str) -> RuntimeError:
    return RuntimeError(f"The pre-processor's required_resources: {name} {why}")
