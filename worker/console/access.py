"""What requests are answered: their host, their session or token, and whether another page sends them.

Every answer has the headers that keep foreign code out: the page loads its own files alone, and no markup is
made from text (Trusted Types).
"""

import ipaddress
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.console.sessions import Sessions

ACTION_HEADER: Final = "x-synapse-console"
"""Each action carries it. Another site's page cannot send it unless this server allows that."""

OPEN_PATHS: Final = frozenset({"/login", "/live", "/ready"})
OPEN_FILES: Final = frozenset({"/static/login.js", "/static/style.css", "/static/i18n.js", "/static/dom.js"})

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    # With "no-referrer" browsers would send the login form with `Origin: null`.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware: the request's host, its session, and for an action where it comes from."""

    def __init__(self, app: ASGIApp, sessions: Sessions, hosts: Collection[str] = ()) -> None:
        """`hosts`: the names under which the page is reached, beside addresses and `localhost`."""
        self._app = app
        self._sessions = sessions
        self._hosts = frozenset(name.lower() for name in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is not admitted, and pass on what is."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        rejection = self._rejection(Request(scope))
        await (rejection or self._app)(scope, receive, send_with_headers)

    def _rejection(self, request: Request) -> Response | None:
        # As it is routed. That of `request.url` is made of the request's host as well, whatever that holds.
        path = request.scope["path"]
        if path in ("/live", "/ready"):
            return None  # a probe names whatever host it likes, and learns nothing
        if not self._is_own_host(request.headers.get("host", "")):
            why = "unknown host: start with --host-name for the name under which this page is reached\n"
            return PlainTextResponse(why, 421)
        if request.method not in ("GET", "HEAD") and not _is_same_origin(request.headers):
            return PlainTextResponse("the request comes from another site\n", 403)
        if path in OPEN_PATHS or path in OPEN_FILES:
            return None
        if not self._sessions.admits(request):
            if path == "/":
                return RedirectResponse("/login", 303)
            return PlainTextResponse("a token is needed\n", 401, {"WWW-Authenticate": "Bearer"})
        if request.method not in ("GET", "HEAD") and ACTION_HEADER not in request.headers:
            return PlainTextResponse(f"an action needs the header {ACTION_HEADER}\n", 403)
        return None

    def _is_own_host(self, host: str) -> bool:
        """A site whose own name points here (DNS rebinding) still sends that name, never an address."""
        name = (urlsplit(f"//{host}").hostname or "") if _is_host(host) else ""
        return name == "localhost" or name in self._hosts or _is_address(name)


def _is_host(host: str) -> bool:
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return False
    return parts.netloc == host and "@" not in host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_same_origin(headers: Headers) -> bool:
    """Browsers say where a POST comes from. Other programs do not, and have no session to misuse."""
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")
