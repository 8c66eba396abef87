"""When a failed request is sent again."""

import random
from dataclasses import dataclass

from worker.platform.errors import (
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    HTTPError,
    MalformedResponseError,
)
from worker.platform.requests import Request

LATER_STATUSES = frozenset({429, 502, 503, 504, 520, 521, 522, 523, 524, 529})
"""A service, or the gateway before it, asks to be called again later: those from 520 on are of CDNs, which
could not reach the service, and of services that are overloaded."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon a request is sent again. It is short because Celery steps are.

    Attributes:
        attempts: How often a request is sent, at most.
        base: Seconds that the exponential backoff (with full jitter) starts from.
        cap: Seconds of one wait, at most.
        max_retry_after: Seconds of one wait that the service asks for by `Retry-After`, at most. When it asks
            for more, its error is the caller's.
        budget: Seconds after the first attempt after which no further one begins.
        retries_statuses: Whether a request is sent again after an answer such as 503, and not only after a
            lost connection.
    """

    attempts: int = 3
    base: float = 0.2
    cap: float = 2.0
    max_retry_after: float = 10.0
    budget: float = 30.0
    retries_statuses: bool = True

    def seconds_until_retry(
        self, error: ClientError, request: Request, attempt: int, elapsed: float
    ) -> float | None:
        """Say when a failed request is sent again.

        Args:
            error: What the attempt ended with.
            request: What was sent.
            attempt: How often it was sent, from 1.
            elapsed: Seconds since the first attempt began.

        Returns:
            Seconds to wait, with full jitter unless the service asks for a time; None to give up.
        """
        if attempt >= self.attempts or not self._retries(error, request):
            return None
        if isinstance(error, HTTPError) and error.retry_after is not None:
            seconds = error.retry_after
        else:
            seconds = random.uniform(0.0, min(self.cap, self.base * 2 ** (attempt - 1)))
        return seconds if elapsed + seconds < self.budget else None

    def _retries(self, error: BaseException, request: Request) -> bool:
        if isinstance(error, HTTPError):
            if not self.retries_statuses:
                return False
            if error.retry_after is not None and error.retry_after > self.max_retry_after:
                return False  # Sent earlier than the service asks for, it would only add to its load.
        return is_retryable(error, request)


def is_retryable(error: BaseException, request: Request) -> bool:
    """Tell whether a request may be sent again.

    Args:
        error: What the last attempt ended with.
        request: What was sent.

    Returns:
        True if the request is harmless when sent twice and the error may pass.
    """
    if not request.retryable:
        return False
    if isinstance(error, ClientConnectionError | ClientTimeoutError):
        return True
    if isinstance(error, MalformedResponseError):
        return error.cut_off
    if not isinstance(error, HTTPError):
        return False
    # A backend that fails with 500 may have written before it failed, so only reads are sent again.
    return error.status_code in LATER_STATUSES or (error.status_code == 500 and request.method == "GET")
