"""When a failed call is made again, and how long after. The same rules for sync and async clients."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import tenacity
from tenacity import RetryCallState
from tenacity.wait import wait_random_exponential

from worker.platform.errors import (
    ClientConnectionError,
    ClientTimeoutError,
    HTTPError,
    MalformedResponseError,
)
from worker.platform.requests import Request

_PASSING = frozenset({429, 502, 503, 504})
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon. Celery steps are short, so this is too; times are in seconds."""

    attempts: int = 3
    base: float = 0.2
    cap: float = 2.0
    longest_retry_after: float = 10.0
    budget: float = 30.0
    """No further attempt is begun later than this after the first one."""

    def arguments(self, request: Request) -> dict[str, Any]:
        """The keyword arguments of tenacity's `Retrying` and `AsyncRetrying` for `request`."""
        backoff = wait_random_exponential(multiplier=self.base, max=self.cap)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            if isinstance(error, HTTPError) and error.retry_after is not None:
                return min(error.retry_after, self.longest_retry_after)
            return backoff(state)

        return {
            "stop": tenacity.stop_after_attempt(self.attempts if request.repeatable else 1)
            | tenacity.stop_before_delay(self.budget),
            "wait": wait,
            "retry": tenacity.retry_if_exception(lambda error: may_pass(error, request)),
            "reraise": True,
        }


def may_pass(error: BaseException, request: Request) -> bool:
    """Whether `request` may be sent again after `error`."""
    if not request.repeatable:
        return False
    if isinstance(error, ClientConnectionError | ClientTimeoutError):
        return True
    if isinstance(error, MalformedResponseError):
        return error.cut_off
    if not isinstance(error, HTTPError):
        return False
    # A backend that fails with 500 may have written before it failed: only reading is tried again.
    return error.status_code in _PASSING or (error.status_code == 500 and request.method == "GET")


def retry_after_seconds(value: str | None, now: datetime | None = None) -> float | None:
    """The header `Retry-After`, seconds or a date, as seconds from now; None where it says nothing usable."""
    if value is None:
        return None
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
