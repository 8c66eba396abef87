"""Compares this machine's clock with Redis's.

Redelivery goes by Redis's clock alone, but Celery keeps countdowns as absolute times: a message that a
worker with a fast clock publishes waits too long at all others, and one with a slow clock takes everything
too late.
"""

import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

WARN_SECONDS = 0.5
REFUSE_SECONDS = 5.0


class ClockOffError(RuntimeError):
    """This machine's clock is too far from Redis's; the message says by how much."""


def offset(server_time: Callable[[], tuple[int, int]], *, clock: Callable[[], float] = time.time) -> float:
    """Seconds by which this machine's clock is ahead; the time that the answer took is no error."""
    asked = clock()
    seconds, micros = server_time()
    answered = clock()
    server = seconds + micros / 1_000_000
    if server > answered:
        return answered - server
    return max(0.0, asked - server)


def check_clock(
    server_time: Callable[[], tuple[int, int]], *, clock: Callable[[], float] = time.time
) -> float:
    """Warn when the clock is off, raise `ClockOffError` when it is off too far; returns by how much."""
    off = offset(server_time, clock=clock)
    if abs(off) > REFUSE_SECONDS:
        direction = "ahead of" if off > 0 else "behind"
        raise ClockOffError(
            f"This machine's clock is {abs(off):.1f} s {direction} Redis's; set it (NTP), at most"
            f" {REFUSE_SECONDS:g} s are borne."
        )
    if abs(off) > WARN_SECONDS:
        log.warning("clock differs from Redis's", seconds_ahead=round(off, 3))
    return off
