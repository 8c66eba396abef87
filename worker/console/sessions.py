"""The token of the page, and the sessions of browsers that have shown it."""

import hashlib
import hmac
import time
from typing import Final

from starlette.requests import Request

SESSION_COOKIE: Final = "synapse_console"
SESSION_SECONDS: Final = 12 * 60 * 60

MIN_TOKEN_CHARS: Final = 16
"""A shorter one could be found by trying: nothing but a second each keeps somebody from that."""


class Sessions:
    """Compares tokens, and makes and reads the cookies of browsers that have shown the right one.

    A cookie is the time at which it ends, signed with the token: no session is stored, it outlives a restart,
    and another token ends them all.
    """

    def __init__(self, token: str | None) -> None:
        """None: everybody who reaches the page may use it."""
        self._token = token

    @property
    def is_required(self) -> bool:
        """Whether a token is asked for."""
        return self._token is not None

    def is_token(self, text: str) -> bool:
        """Whether `text` is the token; takes as long for a wrong one."""
        if self._token is None:
            return False
        # Digests, because the comparison of texts shows whether their lengths differ.
        expected, given = (hashlib.sha256(each.encode()).digest() for each in (self._token, text))
        return hmac.compare_digest(expected, given)

    def cookie(self) -> str:
        """The value of a new session's cookie."""
        ends_at = str(int(time.time()) + SESSION_SECONDS)
        return f"{ends_at}.{self._signature(ends_at)}"

    def is_cookie(self, value: str) -> bool:
        """Whether this is the cookie of a session that has not ended."""
        ends_at, _, signature = value.partition(".")
        if self._token is None or not (ends_at.isascii() and ends_at.isdigit() and len(ends_at) < 20):
            return False
        expected = self._signature(ends_at)
        return hmac.compare_digest(expected.encode(), signature.encode()) and time.time() < int(ends_at)

    def _signature(self, ends_at: str) -> str:
        key = (self._token or "").encode()
        return hmac.new(key, f"synapse-worker console {ends_at}".encode(), hashlib.sha256).hexdigest()

    def admits(self, request: Request) -> bool:
        """Whether the request has a session, or the token as `Authorization: Bearer`."""
        if self._token is None:
            return True
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.is_token(given.strip())
        return self.is_cookie(request.cookies.get(SESSION_COOKIE, ""))
