"""Tickets for inferences that outlive their request, in the form that platform-api gives them."""

import asyncio
import secrets
import time
from collections import OrderedDict
from typing import Any

from shared.deferred import DEFERRED_KEY, FAILED, NOT_FOUND, PENDING, POLL_KEY
from shared.messages import JsonObject
from worker.platform import clean

MAX_TICKETS = 256
TICKET_TTL_SECONDS = 3600.0
"""A result that nobody polled for is dropped after this time."""
COLLECTED_TTL_SECONDS = 60.0
"""A result that was collected through another replica is kept for so long, in case that one loses it."""


def requested_ticket(body: Any) -> str | None:
    """Read the ticket that a request polls for.

    Args:
        body: The request's JSON body.

    Returns:
        The ticket; None when the request is an inference of its own.
    """
    if not isinstance(body, dict) or POLL_KEY not in body:
        return None
    return str(body[POLL_KEY])


def deferred_envelope(status: str, **fields: Any) -> JsonObject:
    """Make the answer that stands in place of a result.

    Args:
        status: `pending`, `failed` or `not_found`.
        **fields: `ticket` or `error`.

    Returns:
        The envelope as JSON.
    """
    return {DEFERRED_KEY: True, "status": status, **fields}


def is_not_found(answer: Any) -> bool:
    """Tell whether a poll was answered by a replica that does not know the ticket.

    Args:
        answer: What a replica answered, as JSON.

    Returns:
        Whether it is the envelope with the status `not_found`.
    """
    return isinstance(answer, dict) and answer.get(DEFERRED_KEY) is True and answer.get("status") == NOT_FOUND


class Tickets:
    """Inferences that continue in this replica, at most `MAX_TICKETS`; the oldest is dropped first."""

    def __init__(self) -> None:
        self._prefix = f"{secrets.token_urlsafe(6)}."
        self._running: OrderedDict[str, tuple[float, asyncio.Future[Any]]] = OrderedDict()

    def issue(self, task: "asyncio.Future[Any]") -> JsonObject:
        """Keep an inference.

        Args:
            task: The running inference.

        Returns:
            A `pending` envelope with its ticket.
        """
        self._forget()
        ticket = self._prefix + secrets.token_urlsafe(12)
        self._running[ticket] = (time.monotonic(), task)
        return deferred_envelope(PENDING, ticket=ticket)

    def is_own(self, ticket: str) -> bool:
        """Tell whether this replica has issued a ticket.

        Args:
            ticket: The ticket of an envelope.

        Returns:
            True also when it has dropped the ticket since.
        """
        return ticket.startswith(self._prefix)

    def collect(self, ticket: str, *, for_replica: bool = False) -> Any:
        """Poll for a ticket.

        Args:
            ticket: The ticket of an envelope.
            for_replica: Another replica was polled and passes the result on; it is kept for a minute more.

        Returns:
            The inference's result, once; else an envelope, `pending` while it runs, `failed` with its error,
            or `not_found` for a ticket of another replica or one that was dropped.
        """
        self._forget()
        if ticket not in self._running:
            return deferred_envelope(NOT_FOUND, ticket=ticket)
        task = self._running[ticket][1]
        if not task.done():
            return deferred_envelope(PENDING, ticket=ticket)
        if for_replica:
            asyncio.get_running_loop().call_later(
                COLLECTED_TTL_SECONDS, lambda: self._running.pop(ticket, None)
            )
        else:
            del self._running[ticket]
        if task.cancelled():
            return deferred_envelope(FAILED, error="the inference was cancelled")
        error = task.exception()
        if error is not None:
            # The error is sent to the caller, and an author's error may contain secrets.
            return deferred_envelope(FAILED, error=clean(f"{type(error).__name__}: {error}"))
        return task.result()

    def _forget(self) -> None:
        oldest = time.monotonic() - TICKET_TTL_SECONDS
        while self._running:
            made, task = next(iter(self._running.values()))
            if made > oldest and len(self._running) < MAX_TICKETS:
                return
            self._running.popitem(last=False)
            task.cancel()
