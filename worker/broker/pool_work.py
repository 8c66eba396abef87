"""Which of the held messages the pool works on, and which only wait in this process."""

import time
from typing import Any

from celery.worker import state

MOMENT = 0.02
"""Seconds between a thread's taking a task and its saying so."""


def in_the_pool(pool: Any, *, last: bool) -> set[str]:
    """Delivery tags of the messages whose tasks run or will run whatever happens now.

    With `last`, no task that a pool of threads has queued begins any more, and these are not counted.
    """
    requests = set(state.reserved_requests) | set(state.active_requests)
    executor = getattr(pool, "executor", None)
    if last and executor is not None:
        executor.shutdown(wait=False, cancel_futures=True)
        time.sleep(MOMENT)
        requests = set(state.active_requests)
    # A request that was given to the pool has an answer to come; others wait for a process or for their time.
    given = (r for r in requests if r in state.active_requests or r._apply_result is not None)
    return {request.message.delivery_tag for request in given}


def waiting_for_their_time() -> list[str]:
    """Delivery tags of the messages with a countdown or ETA that this process keeps in memory."""
    return [request.message.delivery_tag for request in tuple(state.scheduled_requests)]
