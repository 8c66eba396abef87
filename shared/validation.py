"""What is wrong with a value, as text that a person reads: what pydantic found, and what JSON cannot hold."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

MAX_MISTAKES = 20
"""A message may have a hundred thousand wrong keys; the rest are counted."""

MAX_NAME_CHARS = 100
"""Of one part of a key's path, which the author of the message chose."""


def mistake_parts(details: ErrorDetails) -> tuple[str, str]:
    """Split one of pydantic's mistakes into its place and its text.

    Args:
        details: An item of `ValidationError.errors()`.

    Returns:
        The dotted path of the key, empty for the whole model, and what is wrong with it.
    """
    where = ".".join(str(part)[:MAX_NAME_CHARS] for part in details["loc"])
    return where, details["msg"].removeprefix("Value error, ")


def describe_validation_error(error: ValidationError, *, as_sentences: bool = False) -> str:
    """Say where and what is wrong, in one line, without the values that were found there.

    Args:
        error: What a pydantic model raised.
        as_sentences: Write `code is missing` and `code must be text` instead of `code: Field required` and
            `code: must be text`.

    Returns:
        The first `MAX_MISTAKES` mistakes separated by `; `, then how many more there are.
    """
    found = error.errors(include_input=False, include_url=False, include_context=False)
    lines = []
    for details in found[:MAX_MISTAKES]:
        where, what = mistake_parts(details)
        if as_sentences:
            lines.append(f"{where} is missing" if details["type"] == "missing" else f"{where} {what}".strip())
        else:
            lines.append(f"{where}: {what}" if where else what)
    if len(found) > MAX_MISTAKES:
        lines.append(f"and {len(found) - MAX_MISTAKES} more")
    return "; ".join(lines)


def unknown_parameters(given: Iterable[str], known: Iterable[str]) -> str:
    """Name the keys that nobody declares.

    Args:
        given: The parameters' names.
        known: The declared ones.

    Returns:
        For example `unknown parameter 'thresh' (known: name, threshold)`, or an empty text.
    """
    known = sorted(known)
    unknown = [repr(key[:MAX_NAME_CHARS]) for key in sorted(set(given).difference(known))]
    return f"unknown parameter {', '.join(unknown)} (known: {', '.join(known)})" if unknown else ""


_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_MAX_DEPTH = 100
_NUMBERS = {math.inf: "Infinity", -math.inf: "-Infinity"}


def json_mistake(value: Any, *, numbers_only: bool = False) -> str:
    """Say what in a value JSON cannot hold, and where.

    Args:
        value: Anything.
        numbers_only: Whether to leave other types to an encoder that may know them.

    Returns:
        For example `annotations[3].score is NaN`, without the value of any text; empty for JSON.
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        found = _find_mistake(value, "", numbers_only, 0)
        return found or ("" if numbers_only else f"it is no JSON ({type(error).__name__})")
    return ""


def _find_mistake(value: Any, place: str, numbers_only: bool, depth: int) -> str:
    if depth > _MAX_DEPTH:
        return f"{place[:MAX_NAME_CHARS]}… is nested too deeply"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place or 'it'} is {_NUMBERS.get(value, 'NaN')}"
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        wrong = (key for key in value if not isinstance(key, str | int | float | None))
        if not numbers_only and (kind := next((type(key).__name__ for key in wrong), "")):
            return f"{place or 'it'} has a key of the type {kind}"
        parts = ((_join(place, str(key)), each) for key, each in value.items())
    elif isinstance(value, list | tuple):
        parts = ((f"{place}[{index}]", each) for index, each in enumerate(value))
    elif not isinstance(value, str | int | float | None) and not numbers_only:
        return f"{place or 'it'} is of the type {type(value).__name__}, which JSON does not have"
    mistakes = (_find_mistake(each, name, numbers_only, depth + 1) for name, each in parts)
    return next(filter(None, mistakes), "")


def _join(place: str, key: str) -> str:
    key = key[:MAX_NAME_CHARS]
    if not _IDENTIFIER.fullmatch(key):
        return f"{place}[{key!r}]"
    return f"{place}.{key}" if place else key
