"""A call to the platform as a value: what is sent, whether it may be sent twice, what must come back."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from worker.platform.errors import ValidationError

Expect = Literal["object", "list", "any", "none", "text"]
Query = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One call. `path` is relative to the service's base URL and quoted."""

    method: str
    path: str
    # Filters and bodies are the users' own: not shown in logs, nor in a traceback with values.
    query: Query = field(default=(), repr=False)
    json: Any = field(default=None, repr=False)
    repeatable: bool = False
    expect: Expect = "object"


def query_pairs(values: Mapping[str, Any]) -> Query:
    """Query parameters: a list is a repeated key, a boolean is `true` or `false`, None is left out."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        each = value if isinstance(value, list | tuple) else [value]
        pairs += [(str(key), _query_value(key, one)) for one in each if one is not None]
    return tuple(pairs)


def path_id(value: object, name: str, allowed: re.Pattern[str]) -> str:
    """An id as a segment of a path, or a `ValidationError`: nothing has been sent then."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    # A segment of dots alone would climb to another path.
    if not isinstance(text, str) or not allowed.fullmatch(text) or not text.strip("."):
        raise ValidationError(f"400 Bad Request: not a valid {name}", 400, f"not a valid {name}")
    return quote(text, safe="")


def body_of(request: Request) -> bytes | None:
    """The JSON body, or None where the call has none; a `ValidationError` where JSON cannot hold it."""
    if request.json is None:
        return None
    try:
        text = json.dumps(request.json, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        reason = type(error).__name__
    # Outside of the except block, so that the error does not drag the refused value along.
    raise ValidationError(f"400 Bad Request: the body is not JSON ({reason})", 400, "the body is not JSON")


def _query_value(key: object, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    detail = f"the filter {key} is neither text, number, boolean nor a list of these"
    raise ValidationError(f"400 Bad Request: {detail}", 400, detail)
