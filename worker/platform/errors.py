"""What can go wrong with a call to the platform. Every text in here is clean: no URL, token, header or query.

Messages and details are cleaned when an error is made, so an error may be shown to users as it is.
"""

from typing import ClassVar

from worker.platform.redaction import clean

LONGEST_DETAIL = 300
LONGEST_MESSAGE = 400


class ClientError(Exception):
    """A call to the backend or to an agent failed."""

    default_status: ClassVar[int] = 500

    def __init__(self, message: str = "", status_code: int | None = None, detail: str = "") -> None:
        text = shorten(clean(message or (type(self).__doc__ or "").partition("\n")[0]), LONGEST_MESSAGE)
        super().__init__(text)
        self.status_code = self.default_status if status_code is None else status_code
        self.detail = shorten(clean(detail), LONGEST_DETAIL)

    @property
    def status(self) -> int:
        """The same as `status_code`, under the name that users of the platform's own client know."""
        return self.status_code


class ClientTimeoutError(ClientError):
    """The service did not answer in time."""

    default_status = 408


class ClientConnectionError(ClientError):
    """The service cannot be reached, or hung up before it answered."""

    default_status = 503


class MalformedResponseError(ClientError):
    """The service answered with something else than what was due: HTML, nothing, half, too much."""

    default_status = 502

    def __init__(
        self,
        message: str = "",
        status_code: int | None = None,
        detail: str = "",
        *,
        cut_off: bool = False,
    ) -> None:
        super().__init__(message, status_code, detail)
        # An answer that broke off may be whole the next time; one of the wrong shape stays wrong.
        self.cut_off = cut_off


class StrayLinkError(MalformedResponseError):
    """A list's link to its next page leads elsewhere; asking again does not change that."""


class HTTPError(ClientError):
    """The service answered with an error."""

    def __init__(
        self,
        message: str = "",
        status_code: int | None = None,
        detail: str = "",
        *,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, status_code, detail)
        self.retry_after = retry_after
        """Seconds that the service asks to be left alone, or None."""


class AuthenticationError(HTTPError):
    """The service does not know the token: check SYNAPSE_ACCESS_TOKEN or the agent's token."""

    default_status = 401


class AuthorizationError(HTTPError):
    """The token may not do this."""

    default_status = 403


class NotFoundError(HTTPError):
    """There is no such thing."""

    default_status = 404


class ValidationError(HTTPError):
    """The service, or the client before it sends anything, refuses what was asked (400 or 422)."""

    default_status = 400


class RateLimitError(HTTPError):
    """Too many requests; `retry_after` says how many seconds to wait, where the service said so."""

    default_status = 429


class ServerError(HTTPError):
    """The service failed (5xx)."""

    default_status = 500


class StreamError(ClientError):
    """Following a log failed."""


class StreamLimitExceededError(StreamError):
    """The log is longer than the limits of the stream."""

    default_status = 429


class WebSocketError(StreamError):
    """The websocket failed."""

    default_status = 500


def error_type(error: BaseException) -> str:
    """The name under which users read of an error: its class, `MalformedResponse` for a malformed answer."""
    return "MalformedResponse" if isinstance(error, MalformedResponseError) else type(error).__name__


def shorten(text: str, longest: int) -> str:
    """`text` with what is over `longest` cut away and marked."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
