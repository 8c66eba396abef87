"""What can go wrong with a call to the platform. Every text in here is clean: no URL, token or header."""

from typing import Any, ClassVar

from worker.platform.redaction import clean

MAX_DETAIL_CHARS = 300
MAX_MESSAGE_CHARS = 400


class ClientError(Exception):
    """A call to the backend or to an agent failed."""

    default_status: ClassVar[int] = 500

    def __init__(self, message: str = "", status_code: int | None = None, detail: str = "") -> None:
        text = shorten(clean(message or (type(self).__doc__ or "").partition("\n")[0]), MAX_MESSAGE_CHARS)
        super().__init__(text)
        self.status_code = self.default_status if status_code is None else status_code
        self.detail = shorten(clean(detail), MAX_DETAIL_CHARS)

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


class UntrustedLinkError(MalformedResponseError):
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


def shorten(text: str, max_chars: int) -> str:
    """`text` with what is over `longest` cut away and marked."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


MAX_DEPTH = 8  # links of a chain, levels of nested arguments


class CleanedError(Exception):
    """Stands for an exception that could not be copied; its text begins with that one's class name."""


def clean_exception(error: BaseException) -> BaseException:
    """A copy of `error`, of the same class where possible, with cleaned arguments and a cleaned chain.

    A `ClientError` is clean already: it comes back itself, with its chain cleaned.
    """
    return _clean(error, 0)


def _clean(error: BaseException, depth: int) -> BaseException:
    copy = error if isinstance(error, ClientError) else (_same_class(error, depth) or _substitute(error))
    origin = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    explicit = error.__cause__ is not None
    cleaned = None if origin is None or depth >= MAX_DEPTH else _clean(origin, depth + 1)
    copy.__cause__ = cleaned if explicit else None
    copy.__context__ = cleaned
    copy.__suppress_context__ = explicit or cleaned is None
    return copy


def _same_class(error: BaseException, depth: int) -> BaseException | None:
    args = tuple(_clean_argument(argument, depth) for argument in error.args)
    try:
        # Not through __init__: it may ask for a request or a response, the very things to leave behind.
        copy: BaseException = type(error).__new__(type(error), *args)
        copy.args = args
        vars(copy).clear()
        text = str(copy)
    except Exception:
        return None
    # Some classes make their text from what was left behind; such a copy would say less than a stand-in.
    return copy if text == clean(text) and (text or not str(error)) else None


def _substitute(error: BaseException) -> BaseException:
    try:
        text = str(error)
    except Exception:
        text = ""
    name = type(error).__name__
    return CleanedError(clean(f"{name}: {text}" if text else name))


def _clean_argument(argument: Any, depth: int) -> Any:
    if isinstance(argument, str):
        return clean(argument)
    if argument is None or isinstance(argument, bool | int | float):
        return argument
    if isinstance(argument, BaseException) and depth < MAX_DEPTH:
        return _clean(argument, depth + 1)
    if isinstance(argument, list | tuple) and depth < MAX_DEPTH:
        cleaned = [_clean_argument(each, depth + 1) for each in argument]
        return cleaned if isinstance(argument, list) else tuple(cleaned)
    return f"<{type(argument).__name__}>"
