"""Checks elements of a queue, bodies and headers before the code of kombu and Celery meets them."""

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Final

from celery.app.task import Context
from celery.utils.time import maybe_iso8601, maybe_make_aware, timezone
from kombu import compression
from kombu.asynchronous.timer import to_timestamp
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.utils.json import loads

from worker.platform.requests import too_deep


class MalformedError(ValueError):
    """The element is no message; the text says why without showing what it holds."""


def open_element(element: bytes, tag: str, decode_body: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """The envelope as kombu's `Message` wants it, with `tag` as its delivery tag."""
    envelope = _parse(element)
    if not isinstance(envelope, dict):
        raise MalformedError("not a message: not a JSON object")
    if too_deep(element, envelope):
        raise MalformedError("JSON is nested too deeply")
    properties = _part(envelope, "properties", dict)
    if properties is None:
        raise MalformedError("not a message: no properties")
    for name in ("headers", "content-type", "content-encoding", "body"):
        _part(envelope, name, dict if name == "headers" else str)
    for name in ("delivery_info", "body_encoding"):
        _part(properties, name, dict if name == "delivery_info" else str)
    for name in ("exchange", "routing_key"):
        _part(properties.get("delivery_info") or {}, name, str)
    try:
        decode_body(envelope.get("body") or "", properties.get("body_encoding"))
    except Exception as error:
        raise MalformedError(f"body cannot be decoded: {type(error).__name__}") from None
    properties["delivery_tag"] = tag
    return envelope


def _parse(element: bytes) -> Any:
    try:
        return loads(element)
    except RecursionError:
        raise MalformedError("JSON is nested too deeply") from None
    except Exception as error:
        raise MalformedError(f"not JSON: {type(error).__name__}") from None


def _part(holder: dict[str, Any], name: str, kind: type) -> Any:
    value = holder.get(name)
    if value is not None and not isinstance(value, kind):
        raise MalformedError(f"not a message: {name} is not a {kind.__name__}")
    return value


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


MB: Final = 1024 * 1024
LARGEST_BODY: Final = 16 * MB
"""Of a message, unpacked."""

_UNPACKERS: Final[dict[str, Callable[[], Any]]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}


class TooLargeError(ValueError):
    """The body is larger than `LARGEST_BODY`, or in a format whose size cannot be limited."""


def limit_unpacking() -> None:
    """Have kombu unpack no more than that in this process, on any transport."""
    for content_type in compression.encoders():
        pack, _ = compression.get_encoder(content_type)
        compression.register(pack, _limited(_UNPACKERS.get(content_type)), content_type)


def _limited(unpacker: Callable[[], Any] | None) -> Callable[[bytes], bytes]:
    def unpack(packed: bytes) -> bytes:
        if unpacker is None:
            raise TooLargeError
        stream = unpacker()
        body: bytes = stream.decompress(packed, LARGEST_BODY + 1)
        if len(body) > LARGEST_BODY:
            raise TooLargeError
        if not stream.eof:
            raise EOFError
        return body

    return unpack
