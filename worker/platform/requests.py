"""A call to the platform as a value, the address that it goes to, and following a list from page to page."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from worker.platform.errors import MalformedResponseError, UntrustedLinkError, ValidationError

MAX_DEPTH = 100
"""Levels of lists and objects that a message or an answer may have. Parsing bears more than what comes after
it."""


def too_deep(text: bytes | str, value: Any) -> bool:
    """Whether `value`, which is `text` parsed, is nested more deeply than `DEEPEST`."""
    brackets = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if sum(text.count(bracket) for bracket in brackets) <= MAX_DEPTH:  # type: ignore[arg-type, misc]
        return False
    floor = [value]
    for _ in range(MAX_DEPTH + 1):
        floor = [
            child
            for part in floor
            if isinstance(part, list | dict)
            for child in (part.values() if isinstance(part, dict) else part)
        ]
        if not floor:
            return False
    return True


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
    retryable: bool = False
    expect: Expect = "object"


def encode_query(values: Mapping[str, Any]) -> Query:
    """Query parameters: a list is a repeated key, a boolean is `true` or `false`, None is left out."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        each = value if isinstance(value, list | tuple) else [value]
        pairs += [(str(key), _query_value(key, one)) for one in each if one is not None]
    return tuple(pairs)


def path_segment(value: object, name: str, allowed: re.Pattern[str]) -> str:
    """An id as a segment of a path, or a `ValidationError`: nothing has been sent then."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    # A segment of dots alone would climb to another path.
    if not isinstance(text, str) or not allowed.fullmatch(text) or not text.strip("."):
        raise ValidationError(f"400 Bad Request: not a valid {name}", 400, f"not a valid {name}")
    return quote(text, safe="")


def encode_body(request: Request) -> bytes | None:
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


_PORTS = {"http": 80, "https": 443}


class BaseUrl:
    """A service's base URL: `http(s)://host[:port][/path]`."""

    def __init__(self, url: str) -> None:
        origin = _origin(url)
        parts = urlsplit(url) if origin else None
        # The URL itself is not shown: what is wrong with it may be the password in it.
        if origin is None or parts is None or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("the base URL must be http(s)://host[:port][/path]")
        self._origin = origin
        self._prefix = parts.path.rstrip("/") + "/"
        self._root = f"{parts.scheme}://{parts.netloc}{self._prefix}"

    def __repr__(self) -> str:
        return "BaseUrl(<url>)"

    def join(self, path: str, query: Query = ()) -> str:
        """The whole URL of a quoted, relative path."""
        return self._root + path + (f"?{urlencode(query)}" if query else "")

    def relative(self, url: str) -> tuple[str, Query]:
        """Path and query of a link that the service sent, relative to the base URL.

        Raises `UntrustedLinkError` for a link that leads anywhere else: our tokens would go there.
        """
        if _origin(url) != self._origin:
            raise UntrustedLinkError("malformed answer: a link leads to another server")
        parts = urlsplit(url)
        segments = parts.path.lower().replace("%2e", ".").replace("\\", "/").split("/")
        if not parts.path.startswith(self._prefix) or "@" in parts.netloc or {".", ".."} & set(segments):
            raise UntrustedLinkError("malformed answer: a link leads out of the base URL")
        return parts.path.removeprefix(self._prefix), tuple(parse_qsl(parts.query, keep_blank_values=True))


def _origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for what is not an HTTP address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname or not url.isprintable() or " " in url:
        return None
    return parts.scheme, parts.hostname, _PORTS[parts.scheme] if port is None else port


MAX_PAGES = 100_000


class Pagination:
    """Remembers which pages of one list were asked for."""

    def __init__(self, first: Request) -> None:
        self._first = first
        self._seen = {_fingerprint(first)}

    def next_request(self, page: Mapping[str, Any], base: BaseUrl) -> Request | None:
        """The request for the page after `page`, or None where that was the last."""
        link = page["next"]
        if not link:
            return None
        following = page_request(self._first, link, base)
        if _fingerprint(following) in self._seen:
            raise MalformedResponseError("malformed answer: the pages of a list go around in a circle")
        if len(self._seen) >= MAX_PAGES:
            raise MalformedResponseError(f"malformed answer: a list of more than {MAX_PAGES} pages")
        self._seen.add(_fingerprint(following))
        return following


def page_request(request: Request, link: str, base: BaseUrl) -> Request:
    """`request` for the page at `link`, which must lie on the service itself."""
    path, query = base.relative(link)
    return replace(request, path=path, query=query)


def _fingerprint(request: Request) -> int:
    # A hash: a million links of a list with long filters would fill the memory.
    return hash((request.path, tuple(sorted(request.query))))
