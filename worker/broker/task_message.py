"""Checks that a message is a task of Celery's protocol before Celery's code meets it.

Celery checks some of it, at different places: a missing id passes for a lost connection and lets the worker
reconnect for ever; a body that is no `[args, kwargs, embed]` ends it; an embed that is none, or a header
with the name of a method, lets the task neither run nor be acknowledged: its slot is lost.
"""

from typing import Any

from celery.app.task import Context
from celery.utils.time import maybe_iso8601, maybe_make_aware, timezone
from kombu.asynchronous.timer import to_timestamp
from kombu.exceptions import ContentDisallowed, DecodeError

from worker.platform.depth import too_deep

_OURS = frozenset(
    name
    for name, value in vars(Context).items()
    if name.startswith("_") or callable(value) or isinstance(value, property)
)
"""Celery makes attributes of its request from headers; one of these names would stand in for its own code."""

FOLLOWING = ("callbacks", "errbacks", "chain", "chord")
"""All that an embed can hold: signatures of tasks that come after, lists of them but for the chord."""

_SIGNATURE = (("task", str), ("args", list | None), ("kwargs", dict | None), ("options", dict | None))


class NotATaskError(ValueError):
    """The message is no task that Celery can take; the text says why without showing what it holds."""


def check(message: Any) -> None:
    """Raise `NotATaskError` unless Celery can take the message."""
    body = _body(message)
    # In the old protocol the body says everything; hybrids have both.
    fields = message.headers if "task" in message.headers else body
    if not isinstance(fields, dict) or "task" not in fields:
        raise NotATaskError("not a task message: no header task")
    for name in ("task", "id"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise NotATaskError(f"not a task message: no header {name}")
    _check_names(fields)
    _check_retries(fields.get("retries"))
    _check_time_limits(fields.get("timelimit"))
    _check_stamps(fields.get("stamped_headers"), fields.get("stamps"))
    _check_time("eta", fields.get("eta"))
    _check_time("expires", fields.get("expires"))
    _check_arguments(body, old="task" not in message.headers)
    for holder in (fields, body if isinstance(body, dict) else body[2]):
        _check_following(holder)
    if too_deep(bytes(message.body) if isinstance(message.body, memoryview) else message.body, body):
        raise NotATaskError("body is nested too deeply")


def _check_names(fields: dict[str, Any]) -> None:
    if not _OURS.isdisjoint(fields):
        raise NotATaskError("a header has the name of something of Celery's own")
    if not isinstance(fields.get("shadow"), str | None):
        raise NotATaskError("header shadow is not a text")


def _check_retries(retries: Any) -> None:
    if retries is not None and (isinstance(retries, bool) or not isinstance(retries, int) or retries < 0):
        raise NotATaskError("header retries is not a count")


# What follows is used when a pool process is taken already: an error there would lose the process's turn.


def _check_time_limits(limits: Any) -> None:
    if limits is None:
        return
    if (
        not isinstance(limits, list)
        or len(limits) != 2
        or not all(limit is None or isinstance(limit, int | float) for limit in limits)
    ):
        raise NotATaskError("header timelimit is not two numbers")


def _check_stamps(names: Any, stamps: Any) -> None:
    if not names:
        return
    if not isinstance(names, list) or not isinstance(stamps, dict):
        raise NotATaskError("header stamped_headers is not a list with its stamps")
    if not all(isinstance(name, str) and name in stamps for name in names):
        raise NotATaskError("header stamped_headers names something without a stamp")


def _check_following(holder: dict[str, Any]) -> None:
    for name in FOLLOWING:
        found = holder.get(name)
        signatures = [found] if name == "chord" and found is not None else found
        if not isinstance(signatures, list | None) or not all(map(_is_signature, signatures or [])):
            raise NotATaskError(f"{name} is not made of tasks")


def _is_signature(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in _SIGNATURE)


def _check_time(name: str, value: Any) -> None:
    if value is None:
        return
    try:
        if not isinstance(value, str):
            raise TypeError
        moment = maybe_make_aware(maybe_iso8601(value), timezone.local)
        to_timestamp(timezone.to_system(moment))
    except Exception:  # of any kind, as the text decides which
        raise NotATaskError(f"header {name} is not a time") from None


def _body(message: Any) -> Any:
    try:
        return message.payload
    except ContentDisallowed:
        raise NotATaskError("content type is not accepted") from None
    except DecodeError as error:
        raise NotATaskError(f"body is not JSON: {type(error.__cause__ or error).__name__}") from None


def _check_arguments(body: Any, *, old: bool) -> None:
    if isinstance(body, dict) and (old or "args" in body):
        parts = {"args": body.get("args", []), "kwargs": body.get("kwargs", {})}
    elif isinstance(body, list) and len(body) == 3:
        parts = dict(zip(("args", "kwargs", "embed"), body, strict=True))
    else:
        raise NotATaskError("body is not [args, kwargs, embed]")
    for name, part in parts.items():
        kind = list if name == "args" else dict
        if not isinstance(part, kind):
            raise NotATaskError(f"{name} is not a {kind.__name__}")
    if not parts.get("embed", {}).keys() <= set(FOLLOWING):
        raise NotATaskError("embed has more than the tasks that follow")
