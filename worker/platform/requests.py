"""Calls to the platform as values, the base URL that they are relative to, and the pages of a list."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import structlog

from shared.validation import json_mistake
from worker.platform.errors import MalformedResponseError, UntrustedLinkError, ValidationError

log = structlog.get_logger(__name__)

Json: TypeAlias = Any
"""A JSON value of another program: what is in it is known only once it has been validated."""

MAX_DEPTH = 100
"""Levels of lists and objects that a message or a response may have. The JSON parser accepts more than the
code that walks through the value afterwards."""


def too_deep(text: bytes | str, value: Json) -> bool:
    """Tell whether a JSON value is nested more deeply than `MAX_DEPTH`.

    Args:
        text: The JSON text. Where it has few brackets, the value is not looked at.
        value: The same, parsed.

    Returns:
        Whether the value is nested too deeply.
    """
    brackets = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if sum(text.count(bracket) for bracket in brackets) <= MAX_DEPTH:  # type: ignore[arg-type, misc]
        return False
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, list | dict)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return True


Expect = Literal["object", "list", "any", "none", "text"]
"""What a successful response holds: a JSON object, a list (a page or a bare array), any JSON value, nothing
that is read, or plain text."""

Query = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a service.

    Attributes:
        method: The HTTP method.
        path: Relative to the service's base URL, and quoted.
        query: The query parameters.
        json: The body; None for no body.
        retryable: Whether sending it twice is harmless.
        expect: What a successful response holds.
    """

    method: str
    path: str
    # Filters and bodies are the users' data: they must not show in logs or in a traceback with local values.
    query: Query = field(default=(), repr=False)
    json: Json = field(default=None, repr=False)
    retryable: bool = False
    expect: Expect = "object"


def encode_query(values: Mapping[str, Json]) -> Query:
    """Make query parameters of a mapping.

    Args:
        values: A list becomes a repeated key, a boolean `true` or `false`, None is left out.

    Returns:
        The parameters in the mapping's order.

    Raises:
        ValidationError: A value is neither text, number, boolean nor a list of these.
    """
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        items = value if isinstance(value, list | tuple) else [value]
        pairs += [(str(key), _query_value(key, item)) for item in items if item is not None]
    return tuple(pairs)


def path_segment(value: object, name: str, allowed: re.Pattern[str]) -> str:
    """Validate and quote an id that becomes a segment of a path.

    Args:
        value: A string or an integer.
        name: What the id is called in the error.
        allowed: The ids that there can be (platform-api: "Ids are ...").

    Returns:
        The quoted segment.

    Raises:
        ValidationError: There can be no such id.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    # A segment of dots only would lead to a parent path.
    if not isinstance(text, str) or not allowed.fullmatch(text) or not text.strip("."):
        raise ValidationError(f"400 Bad Request: not a valid {name}", 400, f"not a valid {name}")
    return quote(text, safe="")


def encode_body(request: Request) -> bytes | None:
    """Serialize a request's body.

    Args:
        request: Any request.

    Returns:
        JSON in UTF-8, or None if the request has no body.

    Raises:
        ValidationError: JSON cannot represent the body; the error does not show it.
    """
    if request.json is None:
        return None
    try:
        text = json.dumps(request.json, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        reason = json_mistake(request.json) or type(error).__name__
    # Raised outside of the except block: as its context, the caught error would keep the body alive.
    raise ValidationError(f"400 Bad Request: the body is not JSON ({reason})", 400, "the body is not JSON")


def _query_value(key: object, value: Json) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    detail = f"the filter {key} is neither text, number, boolean nor a list of these"
    raise ValidationError(f"400 Bad Request: {detail}", 400, detail)


_DEFAULT_PORTS = {"http": 80, "https": 443}


class BaseUrl:
    """A service's base URL: `http(s)://host[:port][/path]`."""

    def __init__(self, url: str) -> None:
        """Parse and check the URL.

        Args:
            url: Without credentials, query or fragment.

        Raises:
            ValueError: It is no such URL; the message does not show it.
        """
        origin = _origin(url)
        parts = urlsplit(url) if origin else None
        # The URL itself is not shown, because it may contain a password.
        if origin is None or parts is None or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("the base URL must be http(s)://host[:port][/path]")
        self._origin = origin
        self._prefix = parts.path.rstrip("/") + "/"
        self._root = f"{parts.scheme}://{parts.netloc}{self._prefix}"

    def __repr__(self) -> str:
        return "BaseUrl(<url>)"

    def join(self, path: str, query: Query = ()) -> str:
        """Make a whole URL.

        Args:
            path: Relative to the base, and quoted.
            query: The query parameters, not quoted yet.

        Returns:
            The URL.
        """
        return self._root + path + (f"?{urlencode(query)}" if query else "")

    def relative(self, url: str, list_path: str) -> tuple[str, Query]:
        """Take apart a link to another page that the service sent.

        Only its path and query are followed, on this base, so that the tokens reach no other server. The rest
        may be wrong: a service behind a proxy often knows neither its scheme, its port nor its public host.

        Args:
            url: A link, whole or relative.
            list_path: The path of the list, relative to the base.

        Returns:
            Path and query, relative to the base.

        Raises:
            UntrustedLinkError: The link leads neither to the list nor to anything else under the base.
        """
        try:
            parts = urlsplit(url)
        except ValueError:
            raise UntrustedLinkError(_BAD_LINK) from None
        if parts.scheme not in ("", *_DEFAULT_PORTS) or not url.isprintable() or " " in url:
            raise UntrustedLinkError(_BAD_LINK)
        segments = parts.path.lower().replace("%2e", ".").replace("\\", "/").split("/")
        path = f"/{parts.path.lstrip('/')}"
        if {".", ".."} & set(segments):
            raise UntrustedLinkError("malformed answer: a link leads out of the base URL")
        if not parts.path or path.endswith(f"/{list_path}"):
            path = list_path
        elif path.startswith(self._prefix):
            path = path.removeprefix(self._prefix)
        else:
            raise UntrustedLinkError("malformed answer: a link leads out of the base URL")
        if parts.netloc and _origin(url) != self._origin:
            self._warn_of_other_address()
        return path, tuple(parse_qsl(parts.query, keep_blank_values=True))

    def _warn_of_other_address(self) -> None:
        if self._root not in _warned:
            _warned.add(self._root)
            log.warning(OTHER_ADDRESS)


_BAD_LINK = "malformed answer: a link is no HTTP address"

OTHER_ADDRESS = (
    "a service's links name another address than its base URL, at which they are followed: set SYNAPSE_HOST"
    " (of an agent SYNAPSE_AGENT_URL) to that address, or have its proxy send X-Forwarded-Proto and -Host"
)
_warned: set[str] = set()
"""Services of this process whose links have been warned of."""


def _origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None if it is no HTTP address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or not url.isprintable() or " " in url:
        return None
    return parts.scheme, parts.hostname, _DEFAULT_PORTS[parts.scheme] if port is None else port


MAX_PAGES = 100_000


class Pagination:
    """Follows the pages of one list and remembers which have been requested."""

    def __init__(self, first: Request) -> None:
        """Begin with the first page.

        Args:
            first: The request for it.
        """
        self._first = first
        self._requested = {_fingerprint(first)}

    def next_request(self, page: Mapping[str, Json], base: BaseUrl) -> Request | None:
        """Make the request for the page that follows.

        Args:
            page: A page as the service sent it.
            base: The service's base URL.

        Returns:
            The request, or None if the page is the last.

        Raises:
            MalformedResponseError: The link leads out of the base URL or to a page that has been requested
                already, or there are more than `MAX_PAGES` pages.
        """
        link = page["next"]
        if not link:
            return None
        request = page_request(self._first, link, base)
        if _fingerprint(request) in self._requested:
            raise MalformedResponseError("malformed answer: the pages of a list go around in a circle")
        if len(self._requested) >= MAX_PAGES:
            raise MalformedResponseError(f"malformed answer: a list of more than {MAX_PAGES} pages")
        self._requested.add(_fingerprint(request))
        return request


def page_request(request: Request, link: str, base: BaseUrl) -> Request:
    """Make the request for another page of a list.

    Args:
        request: The one for the first page.
        link: The `next` of a page.
        base: The service's base URL.

    Returns:
        The request for the page at the link.

    Raises:
        UntrustedLinkError: The link leads out of the service's base URL.
    """
    path, query = base.relative(link, request.path)
    return replace(request, path=path, query=query)


def _fingerprint(request: Request) -> int:
    # A hash: the long filters of a million links would fill the memory.
    return hash((request.path, tuple(sorted(request.query))))
