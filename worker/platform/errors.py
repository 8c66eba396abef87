"""Errors of calls to the platform, and copies of foreign exceptions; none shows a URL, token or header."""

from typing import Any, ClassVar

from worker.platform.redaction import clean

MAX_DETAIL_CHARS = 300
MAX_MESSAGE_CHARS = 400


class ClientError(Exception):
    """A call to the backend or to an agent failed.

    The classes and their statuses are the contract's ("Errors that users read").
    """

    default_status: ClassVar[int] = 500

    def __init__(
        self, message: str | int = "", status_code: int | str | None = None, detail: str = ""
    ) -> None:
        """Clean and shorten the texts.

        Args:
            message: What `str` returns; by default the first line of the class's docstring. As in the
                published SDK, it may be the status, followed by the detail: `ClientError(503, "away")`.
            status_code: HTTP status, the service's own or the nearest one; by default the class's.
            detail: What the service says about the error.
        """
        if isinstance(message, int):
            detail = detail or str("" if status_code is None else status_code)
            message, status_code = f"{message}: {detail}" if detail else str(message), message
        text = shorten(clean(message or (type(self).__doc__ or "").partition("\n")[0]), MAX_MESSAGE_CHARS)
        super().__init__(text)
        self.status_code = self.default_status if status_code is None else int(status_code)
        self.detail = shorten(clean(detail), MAX_DETAIL_CHARS)

    @property
    def status(self) -> int:
        """The same as `status_code`, under the name that the Ray client's document uses."""
        return self.status_code


class ClientTimeoutError(ClientError):
    """The service did not answer in time."""

    default_status = 408


class ClientConnectionError(ClientError):
    """The service cannot be reached, or closed the connection before it answered."""

    default_status = 503


class MalformedResponseError(ClientError):
    """The service answered with something unexpected: HTML, no body, a truncated or too large one."""

    default_status = 502

    def __init__(
        self,
        message: str | int = "",
        status_code: int | str | None = None,
        detail: str = "",
        *,
        cut_off: bool = False,
    ) -> None:
        """Clean and shorten the texts.

        Args:
            message: See `ClientError`.
            status_code: See `ClientError`.
            detail: See `ClientError`.
            cut_off: Whether the connection was lost in the middle of the response. Only then is it worth
                sending the request again: a response of the wrong shape stays wrong.
        """
        super().__init__(message, status_code, detail)
        self.cut_off = cut_off


class ResponseTooLargeError(MalformedResponseError):
    """The service's answer is larger than WORKER_MAX_ANSWER_MB."""


class UntrustedLinkError(MalformedResponseError):
    """A list's link to its next page leads out of the service's base URL; asking again does not help."""


class HTTPError(ClientError):
    """The service answered with an error."""

    def __init__(
        self,
        message: str | int = "",
        status_code: int | str | None = None,
        detail: str = "",
        *,
        retry_after: float | None = None,
    ) -> None:
        """Clean and shorten the texts.

        Args:
            message: See `ClientError`.
            status_code: See `ClientError`.
            detail: See `ClientError`.
            retry_after: Seconds to wait before the next request (the header `Retry-After`), if the service
                says so.
        """
        super().__init__(message, status_code, detail)
        self.retry_after = retry_after


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
    """The service, or the client before it sends anything, rejects what was asked (400 or 422)."""

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
    """Name an error for users, as the contract's messages do (`{error_type}`).

    Args:
        error: Any exception.

    Returns:
        The name of its class, `MalformedResponse` for a malformed response.
    """
    return "MalformedResponse" if isinstance(error, MalformedResponseError) else type(error).__name__


def shorten(text: str, max_chars: int) -> str:
    """Shorten a text that is too long.

    Args:
        text: Any text.
        max_chars: Characters of the result, at most.

    Returns:
        The text, or its beginning followed by an ellipsis.
    """
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


MAX_DEPTH = 8
"""Exceptions in a chain of causes, and levels of nested arguments, that are cleaned."""


class CleanedError(Exception):
    """Takes the place of an exception that cannot be copied; its text begins with that one's class name."""


def clean_exception(error: BaseException) -> BaseException:
    """Copy an exception without secrets and URLs, so that it may be logged or chained as a cause.

    The contract asks for it of every `__cause__` that a user may see.

    Args:
        error: Any exception. A `ClientError` is clean by itself: only its chain is replaced, in place.

    Returns:
        An exception of the same class if possible, otherwise a `CleanedError`, without a traceback and with a
        cleaned chain of causes.
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
        # Not through __init__: it may require a request or a response, which must not be kept.
        copy: BaseException = type(error).__new__(type(error), *args)
        copy.args = args
        vars(copy).clear()
        text = str(copy)
    except Exception:
        return None
    # Some classes build their text from attributes that are not copied; a substitute then says more.
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
