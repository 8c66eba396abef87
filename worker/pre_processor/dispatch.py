"""Into the waiting room; one of all who come asks the backend for the deployment."""

import json
from typing import Any

import structlog

from worker.platform import ClientConnectionError, ClientError, HTTPError
from worker.pre_processor.classify import classify_serve_app, snapshot_of
from worker.pre_processor.detection import FINDING
from worker.pre_processor.errors import dispatch_failed
from worker.pre_processor.names import RoomName
from worker.pre_processor.payload import dispatch_body, dispatched_job
from worker.pre_processor.polls import FIRST_SECONDS, start_poll, wake
from worker.pre_processor.room import Room
from worker.pre_processor.target import PreProcessor, records
from worker.runs.heartbeat import run_member
from worker.runs.model import Outcome, Park, PollAgain, Run
from worker.services import Services

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
