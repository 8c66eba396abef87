"""Reads an element of a queue's list: kombu's envelope, checked before kombu's code meets it.

Stock kombu raises on each of these in places that no consumer can catch, and the worker exits or reconnects
for ever with the message back on its queue.
"""

from collections.abc import Callable
from typing import Any

from kombu.utils.json import loads

from worker.platform.depth import too_deep


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
