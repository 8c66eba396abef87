"""Messages that the worker cannot take: what is kept of them, and who keeps them.

The transport and the consumer send `message_refused`; the application connects a receiver that writes the
dead letter. A message is acknowledged only after that: without a receiver, or when one fails, it stays in
Redis and is delivered again. Neither a log line nor a reason shows what a message holds.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

import structlog
from celery.utils.dispatch import Signal

log = structlog.get_logger(__name__)

message_refused = Signal(name="message_refused", providing_args={"refused"})
"""Sent with `refused`, a `RefusedMessage`. Receivers raise when they could not keep it."""

LONGEST_NAME = 200


@dataclass(frozen=True)
class RefusedMessage:
    """A message that was not accepted."""

    task: str
    """Its task, empty when that cannot be read."""
    body: str
    """Its body as it came; the whole element of the queue when the envelope around it is broken; with the
    prefix `base64:` when it is not text."""
    reason: str
    message_id: str | None = None
    """Its id, when it has one: a second delivery is the same message."""
    kwargs: dict[str, Any] | None = None
    """Its arguments, when they can be read."""


def keep(sender: object, refused: RefusedMessage) -> bool:
    """Hand it to the receivers; whether it was kept."""
    answers = message_refused.send(sender, refused=refused)
    kept = bool(answers) and not any(isinstance(answer, Exception) for _, answer in answers)
    log.warning("message refused", task=refused.task, reason=refused.reason, kept=kept)
    return kept


def refused_element(element: bytes, reason: str) -> RefusedMessage:
    """Of an element of a queue that is no message; its arguments are read if that is possible at all."""
    whole = as_text(element)
    try:
        envelope = json.loads(element)
        headers = envelope.get("headers")
        body = envelope.get("body")
    except Exception:  # of any kind: it has no parts then
        return RefusedMessage("", whole, reason)
    headers = headers if isinstance(headers, dict) else {}
    return RefusedMessage(_name(headers), whole, reason, _id(headers), _kwargs(_decoded(body)))


def refused_message(message: Any, reason: str) -> RefusedMessage:
    """Of a message whose envelope is in order."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    body = message.body if isinstance(message.body, bytes | str) else bytes(message.body or b"")
    text = as_text(body)
    return RefusedMessage(_name(headers), text, reason, _id(headers), _kwargs(text))


def as_text(body: bytes | str) -> str:
    """Text that can be stored and read back, whatever the bytes are."""
    if isinstance(body, str):
        body = body.encode("utf-8", "surrogatepass")
    try:
        return body.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(body).decode()


def _name(headers: dict[str, Any]) -> str:
    name = headers.get("task")
    return name[:LONGEST_NAME] if isinstance(name, str) else ""


def _id(headers: dict[str, Any]) -> str | None:
    id_ = headers.get("id")
    return id_ if isinstance(id_, str) and 0 < len(id_) <= LONGEST_NAME else None


def _decoded(body: Any) -> str:
    if not isinstance(body, str):
        return ""
    try:
        return base64.b64decode(body, validate=True).decode()
    except (binascii.Error, ValueError):
        return body


def _kwargs(body: str) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    kwargs: Any = None
    if isinstance(value, list) and len(value) > 1:
        kwargs = value[1]
    elif isinstance(value, dict):  # the old protocol
        kwargs = value.get("kwargs")
    return kwargs if isinstance(kwargs, dict) else None
