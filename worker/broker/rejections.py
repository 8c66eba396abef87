"""Messages that the worker cannot accept: what is kept of them, and how that is handed to the application.

The transport and the consumer send the signal `message_rejected`; the application connects a receiver that
writes the dead letter. A message is acknowledged only after that: without a receiver, or when one fails, it
stays in Redis and is redelivered. Neither a log line nor a reason shows what a message holds.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

import structlog
from celery.utils.dispatch import Signal
from kombu.utils.json import loads

from shared.messages import JsonObject
from shared.statuses import JobStatus

log = structlog.get_logger(__name__)

message_rejected = Signal(name="message_rejected", providing_args={"rejected"})
"""Sent with `rejected`, a `RejectedMessage`. A receiver that could not keep the message raises."""

step_unknown = Signal(name="step_unknown", providing_args={"message_id"})
"""Sent with the id of a step's message that this worker does not know. A receiver answers how many seconds
ago a worker met it first that does not know it."""
UNKNOWN_STEP = "unknown step: no worker knew it for a day"

MAX_UNKNOWN_STEP_SECONDS = 86_400.0
"""Then a step is no more left to a newer worker: there is none, or the message only looks like a step's."""

MAX_NAME_CHARS = 200


@dataclass(frozen=True)
class RejectedMessage:
    """A message that was not accepted."""

    task: str
    """The task's name, empty when it cannot be read."""
    body: str
    """The body as it came; the whole element of the queue when its envelope is broken; with the prefix
    `base64:` when it is not text."""
    reason: str
    message_id: str | None = None
    """The message's id, if it has one: a redelivery has the same."""
    kwargs: JsonObject | None = None
    """The arguments by name, if they can be read."""
    args: tuple[Any, ...] = ()
    """The arguments by position, likewise."""
    job_status: JobStatus = JobStatus.FAILED
    """With what the message's job ends, if it has no run."""


def keep_rejected(sender: object, rejected: RejectedMessage) -> bool:
    """Send the message to the receivers; returns whether all of them kept it."""
    answers = message_rejected.send(sender, rejected=rejected)
    kept = bool(answers) and not any(isinstance(answer, Exception) for _, answer in answers)
    log.warning("message rejected", task=rejected.task, reason=rejected.reason, kept=kept)
    return kept


def may_be_of_newer_worker(sender: object, message_id: str | None) -> bool:
    """Whether an unknown step is still to be left to a newer worker of the fleet."""
    if message_id is None:
        return False
    answers = step_unknown.send(sender, message_id=message_id)
    return all(answer < MAX_UNKNOWN_STEP_SECONDS for _, answer in answers if isinstance(answer, float))


def rejected_element(element: bytes, reason: str) -> RejectedMessage:
    """Describe an element of a queue that is no message; its arguments are read if that is possible."""
    whole = body_as_text(element)
    try:
        envelope = json.loads(element)
        headers = envelope.get("headers")
        body = envelope.get("body")
    except Exception:  # of any kind: the element has no parts then
        return RejectedMessage("", whole, reason)
    headers = headers if isinstance(headers, dict) else {}
    return RejectedMessage(_name(headers), whole, reason, _id(headers), *_arguments(_decoded(body)))


def rejected_message(message: Any, reason: str) -> RejectedMessage:
    """Describe a message whose envelope is in order."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    body = message.body if isinstance(message.body, bytes | str) else bytes(message.body or b"")
    text = body_as_text(body)
    return RejectedMessage(_name(headers), text, reason, _id(headers), *_arguments(text))


def body_as_text(body: bytes | str) -> str:
    """Text that can be stored and converted back, whatever the bytes are."""
    if isinstance(body, str):
        body = body.encode("utf-8", "surrogatepass")
    try:
        return body.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(body).decode()


def _name(headers: JsonObject) -> str:
    name = headers.get("task")
    return name[:MAX_NAME_CHARS] if isinstance(name, str) else ""


def _id(headers: JsonObject) -> str | None:
    id_ = headers.get("id")
    return id_ if isinstance(id_, str) and 0 < len(id_) <= MAX_NAME_CHARS else None


def _decoded(body: object) -> str:
    if not isinstance(body, str):
        return ""
    try:
        return base64.b64decode(body, validate=True).decode()
    except (binascii.Error, ValueError):
        return body


def _arguments(body: str) -> tuple[JsonObject | None, tuple[Any, ...]]:
    """Those by name and those by position, as far as they can be read."""
    value = read_json(body)
    parts: tuple[object, object] = (None, None)
    if isinstance(value, list) and len(value) > 1:
        parts = (value[1], value[0])
    elif isinstance(value, dict):  # version 1 of Celery's protocol
        parts = (value.get("kwargs"), value.get("args"))
    kwargs, args = parts
    return kwargs if isinstance(kwargs, dict) else None, tuple(args) if isinstance(args, list) else ()


def read_json(text: str) -> Any:
    """Text as kombu reads it, or else as plain JSON; None when it is not JSON."""
    for read in (loads, json.loads):
        try:
            return read(text)
        except (ValueError, TypeError, RecursionError):  # kombu: a type that it does not know
            continue
    return None
