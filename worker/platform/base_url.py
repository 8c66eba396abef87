"""The address of a service, and the fence around it: no request leaves the base URL's origin and path."""

from urllib.parse import parse_qsl, urlencode, urlsplit

from worker.platform.errors import StrayLinkError
from worker.platform.requests import Query

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

        Raises `StrayLinkError` for a link that leads anywhere else: our tokens would go there.
        """
        if _origin(url) != self._origin:
            raise StrayLinkError("malformed answer: a link leads to another server")
        parts = urlsplit(url)
        segments = parts.path.lower().replace("%2e", ".").replace("\\", "/").split("/")
        if not parts.path.startswith(self._prefix) or "@" in parts.netloc or {".", ".."} & set(segments):
            raise StrayLinkError("malformed answer: a link leads out of the base URL")
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
