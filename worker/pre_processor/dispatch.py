"""Detect whether the pre-processor runs; join the waiting list; one of all dispatches the deployment."""

import json
import sys
from collections.abc import Mapping
from typing import Any

import structlog
from pydantic import TypeAdapter
from pydantic import ValidationError as NotAJobError

from shared.messages import Job, ToTaskMessage, ToTaskParams
from worker.platform import (
    ClientConnectionError,
    ClientError,
    HTTPError,
    MalformedResponseError,
    clean_exception,
    contains_secret,
    error_type,
)
from worker.pre_processor.serve_application import (
    PreProcessor,
    classify_serve_app,
    find,
    records,
    records_if_legible,
    snapshot_of,
)
from worker.pre_processor.waitlist import DISPATCH, FIRST_SECONDS, READY, Room, RoomName, start_poll, wake
from worker.runs.heartbeat import run_member
from worker.runs.model import Continue, Outcome, Park, PollAgain, Run
from worker.services import Services

DISPATCH_FAILED = "Pre-processor deployment dispatch failed ({error_type})"
APPLICATION_FAILED = "Pre-processor deployment failed: serve application reached terminal state ({status})"
JOB_FAILED = "Pre-processor deployment failed: job reached terminal state ({status})"
TIMED_OUT = "Pre-processor did not become ready within timeout"


def dispatch_failed(cause: BaseException) -> RuntimeError:
    """The backend did not take the dispatch; `__cause__` is its error, cleaned of secrets."""
    error = RuntimeError(DISPATCH_FAILED.format(error_type=error_type(cause)))
    error.__cause__ = clean_exception(cause)
    return error


def application_failed(status: str) -> RuntimeError:
    """The application is in a state from which it does not come back."""
    return RuntimeError(APPLICATION_FAILED.format(status=status))


def job_failed(status: str) -> RuntimeError:
    """The job of the deployment ended without success."""
    return RuntimeError(JOB_FAILED.format(status=status))


def timed_out() -> RuntimeError:
    """The wait was as long as it may be."""
    return RuntimeError(TIMED_OUT)


DEFAULT_CPUS = 1
DEFAULT_GPUS = 0.1

_JOB: TypeAdapter[str] = TypeAdapter(Job)


def dispatch_body(target: PreProcessor) -> dict[str, Any]:
    """The body of `POST plugins/{code}/run/` that deploys `target`. Nothing undeclared, nothing null."""
    return {
        "agent": target.agent,
        "action": "deployment",
        "params": dispatch_params(target.config),
        "version": target.version,
    }


def dispatch_params(config: Mapping[str, Any]) -> dict[str, Any]:
    """`num_cpus` and `num_gpus`, and `num_replicas` and `memory` where the release declares them.

    Raises `RuntimeError` for values that no cluster could give.
    """
    declared = _required_resources(config)
    memory = _whole(declared, 0, "memory", "memory_bytes")
    replicas = _whole(declared, 1, "num_replicas")
    cpus = _number(declared, "required_cpu_count", "num_cpus")
    gpus = _number(declared, "required_gpu_count", "num_gpus")
    params: dict[str, Any] = {
        "num_cpus": DEFAULT_CPUS if cpus is None else cpus,
        "num_gpus": DEFAULT_GPUS if gpus is None else gpus,
    }
    if replicas is not None:
        params["num_replicas"] = replicas
    if memory is not None:
        params["memory"] = memory
    return params


def dispatched_job(answer: object) -> str:
    """The job in a dispatch's answer, `id` or `job_id`; raises `MalformedResponseError`."""
    given = None
    if isinstance(answer, dict):
        given = answer["id"] if answer.get("id") is not None else answer.get("job_id")
    try:
        job = _JOB.validate_python(given)
        if not contains_secret(job):
            return job
    except NotAJobError:
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
            raise _refused(name, "is not a number")
        # Not math.isfinite, which a whole number of 400 digits overflows.
        if not 0 <= value <= sys.float_info.max:
            raise _refused(name, "must be a number from 0 up")
        return value
    return None


def _whole(declared: Mapping[str, Any], least: int, *names: str) -> int | None:
    for name in names:
        value = _number(declared, name)
        if value is None:
            continue
        if value != int(value) or value < least:
            raise _refused(name, f"must be a whole number from {least} up")
        return int(value)
    return None


def _refused(name: str, why: str) -> RuntimeError:
    return RuntimeError(f"The pre-processor's required_resources: {name} {why}")


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


log = structlog.get_logger(__name__)

STEP = "prepare"
GATEWAY_STATUSES = frozenset({502, 504})
"""Said by what stands before the backend, which may have got the request all the same."""

NEVER_ARRIVED = ("nobody listens", "host name is unknown", "certificate is not trusted")
"""In the text of a connection error: the request was not sent. A connection that was lost may have been cut
after the backend had it."""


def dispatch(run: Run, services: Services) -> Outcome:
    """Join the room. Whoever is given the claim dispatches, once; the poll lets everybody out."""
    target = PreProcessor.from_finding(run.findings[FINDING])
    body = dispatch_body(target)
    runs, timeout = services.runs, services.settings.worker_pre_processor_timeout_seconds
    name = RoomName.of(run.message.tenant or services.settings.synapse_tenant, target)
    room = Room(runs.redis, name)
    # Before the room says that it is polled: whoever dies until its poll is out leaves a room that is missed.
    runs.live.include(name.member)
    joined = room.join(run.job, timeout, again=run.again)
    if joined.poll:
        start_poll(runs, name, joined.poll, FIRST_SECONDS if joined.claim else 0.0)
    # The run is silent from here on until it is let out.
    runs.live.expect(run_member(run.job), timeout)
    runs.advance(run, STEP, 60)
    if joined.claim is not None:
        return _claimed(run, services, room, joined.claim, target, body)
    if joined.first:
        known = f" (job {joined.job})" if joined.job else ""
        runs.events.message(run.job, f"Waiting for pre-processor {target.release}{known}.", step=STEP)
    return Park()


def _claimed(
    run: Run, services: Services, room: Room, token: str, target: PreProcessor, body: dict[str, Any]
) -> Outcome:
    backend, runs = services.backend(run.message.tenant), services.runs
    try:
        found = records(backend, target)
    except (ClientError, OSError) as error:
        log.warning("look before dispatch failed", error_type=type(error).__name__)
        return PollAgain(min(1.0, runs.timing.longest_countdown))
    if classify_serve_app(found)[0] == "running":
        room.forget_dispatch(token)  # it came up since the run looked first: the poll lets out
        return Park()
    if not room.amend(token, sent=room.now(), snapshot=json.dumps(snapshot_of(found))):
        return Park()  # this process was taken for dead; another one dispatches
    try:
        job = dispatched_job(backend.run_plugin(target.code, body))
    except (ClientError, OSError) as error:
        failure = error
    else:
        room.amend(token, job=job)
        log.info("pre-processor dispatched", release=target.release, dispatched=job)
        text = f"Waiting for pre-processor {target.release} (dispatched as job {job})."
        runs.events.message(run.job, text, step=STEP)
        return Park()
    failed = dispatch_failed(failure)
    # What may have been taken all the same has its time from now on to be seen.
    room.amend(token, failure=str(failed), unclear=int(is_unclear(failure)), sent=room.now())
    wake(runs, room.name)
    raise failed


def is_unclear(error: Exception) -> bool:
    """Whether the backend may have dispatched in spite of the error."""
    if isinstance(error, HTTPError):
        return error.status_code in GATEWAY_STATUSES
    if isinstance(error, ClientConnectionError):
        return not any(reason in str(error) for reason in NEVER_ARRIVED)
    return not isinstance(error, ConnectionRefusedError)
