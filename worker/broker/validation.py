"""Checks a queue's elements, their headers and bodies before kombu and Celery handle them."""

import bz2
import lzma
import zlib
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from celery.app.task import Context
from celery.utils.time import maybe_iso8601, maybe_make_aware, timezone
from kombu import compression
from kombu.asynchronous.timer import to_timestamp
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.utils.json import loads

from shared.messages import JsonObject
from worker.broker.delivery import DELIVERIES, delivery_count
from worker.platform.requests import too_deep

HONOURED_ETA: Final = "honoured_eta"
"""Header with the ETA of a message that Redis has delayed until then. Celery would keep one whose header is
`eta` in memory for a moment, so the worker's consumer leaves it this one alone."""


class MalformedError(ValueError):
    """The element is no message; the text says why without showing what it holds."""


def parse_element(element: bytes, tag: str, decode_body: Callable[[Any, Any], Any]) -> JsonObject:
    """The envelope in the form that kombu's `Message` needs, with `tag` as its delivery tag."""
    envelope = _parse_json(element)
    if not isinstance(envelope, dict):
        raise MalformedError("not a message: not a JSON object")
    if too_deep(element, envelope):
        raise MalformedError("JSON is nested too deeply")
    properties = _typed_part(envelope, "properties", dict)
    if properties is None:
        raise MalformedError("not a message: no properties")
    for name in ("headers", "content-type", "content-encoding", "body"):
        _typed_part(envelope, name, dict if name == "headers" else str)
    for name in ("delivery_info", "body_encoding"):
        _typed_part(properties, name, dict if name == "delivery_info" else str)
    for name in ("exchange", "routing_key"):
        _typed_part(properties.get("delivery_info") or {}, name, str)
    try:
        decode_body(envelope.get("body") or "", properties.get("body_encoding"))
    except Exception as error:
        raise MalformedError(f"body cannot be decoded: {type(error).__name__}") from None
    properties["delivery_tag"] = tag
    properties[DELIVERIES] = delivery_count(properties)
    return envelope


def _parse_json(element: bytes) -> Any:
    try:
        return loads(element)
    except RecursionError:
        raise MalformedError("JSON is nested too deeply") from None
    except Exception as error:
        raise MalformedError(f"not JSON: {type(error).__name__}") from None


def _typed_part(holder: JsonObject, name: str, kind: type) -> Any:
    value = holder.get(name)
    if value is not None and not isinstance(value, kind):
        raise MalformedError(f"not a message: {name} is not a {kind.__name__}")
    return value


_CELERY_ATTRIBUTES = frozenset(
    name
    for name, value in vars(Context).items()
    if name.startswith("_") or callable(value) or isinstance(value, property)
)
"""Celery makes headers attributes of its request: a header of such a name would replace its own code."""

EMBED_KEYS = ("callbacks", "errbacks", "chain", "chord")
"""All keys of a body's `embed`: signatures of the tasks to send afterwards, in lists except for the chord."""

_SIGNATURE = (("task", str), ("args", list | None), ("kwargs", dict | None), ("options", dict | None))


class NotATaskError(ValueError):
    """The message is no task that Celery can run; the text says why without showing what it holds."""


def check_task_message(message: Any) -> None:
    """Raise `NotATaskError` unless Celery can run the message."""
    body = _body(message)
    # In version 1 of Celery's protocol the body has all fields; some messages are a mixture of both versions.
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
    _check_time(HONOURED_ETA, fields.get(HONOURED_ETA))
    _check_time("expires", fields.get("expires"))
    _check_arguments(body, version_1="task" not in message.headers)
    for holder in (fields, body if isinstance(body, dict) else body[2]):
        _check_embed(holder)
    if too_deep(bytes(message.body) if isinstance(message.body, memoryview) else message.body, body):
        raise NotATaskError("body is nested too deeply")


def _check_names(fields: JsonObject) -> None:
    if not _CELERY_ATTRIBUTES.isdisjoint(fields):
        raise NotATaskError("a header has the name of something of Celery's own")
    if not isinstance(fields.get("shadow"), str | None):
        raise NotATaskError("header shadow is not a text")


def _check_retries(retries: object) -> None:
    if retries is not None and (isinstance(retries, bool) or not isinstance(retries, int) or retries < 0):
        raise NotATaskError("header retries is not a count")


# Celery uses the following fields when it has already taken a pool process: an error there loses its slot.


def _check_time_limits(limits: object) -> None:
    if limits is None:
        return
    if (
        not isinstance(limits, list)
        or len(limits) != 2
        or not all(limit is None or isinstance(limit, int | float) for limit in limits)
    ):
        raise NotATaskError("header timelimit is not two numbers")


def _check_stamps(names: object, stamps: object) -> None:
    if not names:
        return
    if not isinstance(names, list) or not isinstance(stamps, dict):
        raise NotATaskError("header stamped_headers is not a list with its stamps")
    if not all(isinstance(name, str) and name in stamps for name in names):
        raise NotATaskError("header stamped_headers names something without a stamp")


def _check_embed(holder: JsonObject) -> None:
    for name in EMBED_KEYS:
        found = holder.get(name)
        signatures = [found] if name == "chord" and found is not None else found
        if not isinstance(signatures, list | None) or not all(map(_is_signature, signatures or [])):
            raise NotATaskError(f"{name} is not made of tasks")


def _is_signature(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in _SIGNATURE)


def _check_time(name: str, value: object) -> None:
    if value is None:
        return
    try:
        to_timestamp(timezone.to_system(_moment(value)))
    except Exception:  # of any kind: which one depends on the text
        raise NotATaskError(f"header {name} is not a time") from None


def timestamp_of(value: object) -> float:
    """A time of a message's header, in seconds since the epoch; raises an error of any kind if it is none."""
    return _moment(value).timestamp()


def _moment(value: object) -> datetime:
    if not isinstance(value, str):
        raise TypeError
    moment: datetime = maybe_make_aware(maybe_iso8601(value), timezone.local)
    return moment


def _body(message: Any) -> Any:
    try:
        return message.payload
    except ContentDisallowed:
        raise NotATaskError("content type is not accepted") from None
    except DecodeError as error:
        raise NotATaskError(f"body is not JSON: {type(error.__cause__ or error).__name__}") from None


def _check_arguments(body: object, *, version_1: bool) -> None:
    if isinstance(body, dict) and (version_1 or "args" in body):
        parts = {"args": body.get("args", []), "kwargs": body.get("kwargs", {})}
    elif isinstance(body, list) and len(body) == 3:
        parts = dict(zip(("args", "kwargs", "embed"), body, strict=True))
    else:
        raise NotATaskError("body is not [args, kwargs, embed]")
    for name, part in parts.items():
        kind = list if name == "args" else dict
        if not isinstance(part, kind):
            raise NotATaskError(f"{name} is not a {kind.__name__}")
    if not parts.get("embed", {}).keys() <= set(EMBED_KEYS):
        raise NotATaskError("embed has more than the tasks that follow")


MB: Final = 1024 * 1024
MAX_BODY_BYTES: Final = 16 * MB
"""Of a message's body after decompression."""

_DECOMPRESSORS: Final[dict[str, Callable[[], Any]]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}


class TooLargeError(ValueError):
    """The body is larger than `MAX_BODY_BYTES`, or in a format whose decompression cannot be limited."""


def limit_decompression() -> None:
    """Let kombu decompress at most `MAX_BODY_BYTES` a body in this process, on any transport."""
    for content_type in compression.encoders():
        compress, _ = compression.get_encoder(content_type)
        compression.register(compress, _limited_decompressor(_DECOMPRESSORS.get(content_type)), content_type)


def _limited_decompressor(make_decompressor: Callable[[], Any] | None) -> Callable[[bytes], bytes]:
    def decompress(data: bytes) -> bytes:
        if make_decompressor is None:
            raise TooLargeError
        stream = make_decompressor()
        body: bytes = stream.decompress(data, MAX_BODY_BYTES + 1)
        if len(body) > MAX_BODY_BYTES:
            raise TooLargeError
        if not stream.eof:
            raise EOFError
        return body

    return decompress
