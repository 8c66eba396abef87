"""An inference that outlives its request: it runs on, and a ticket is asked for until it is done.

The envelopes are the platform's (`__synapse_deferred__`, `__synapse_poll__`). Tickets live in one replica.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from typing import Any

from worker.platform import clean

POLL_KEY = "__synapse_poll__"
ENVELOPE_KEY = "__synapse_deferred__"
MAX_TICKETS = 256
KEEP_SECONDS = 3600.0
"""A result that nobody asked for is forgotten after this."""


def ticket_of(body: Any) -> str | None:
    """The ticket that a request asks for; None for a request of its own."""
    if not isinstance(body, dict) or POLL_KEY not in body:
        return None
    return str(body[POLL_KEY])


def envelope(status: str, **fields: Any) -> dict[str, Any]:
    """The answer in place of a result."""
    return {ENVELOPE_KEY: True, "status": status, **fields}


class Tickets:
    """Inferences that run on in this replica, at most `MAX_TICKETS`, the oldest forgotten first."""

    def __init__(self) -> None:
        self._running: OrderedDict[str, tuple[float, asyncio.Future[Any]]] = OrderedDict()

    def issue(self, task: "asyncio.Future[Any]") -> dict[str, Any]:
        """Keep `task` and answer with its ticket."""
        self._forget()
        ticket = secrets.token_urlsafe(12)
        self._running[ticket] = (time.monotonic(), task)
        return envelope("pending", ticket=ticket)

    def collect(self, ticket: str) -> Any:
        """The result once it is there; until then, or when it failed or is not here, an envelope."""
        self._forget()
        if ticket not in self._running:
            return envelope("not_found", ticket=ticket)
        task = self._running[ticket][1]
        if not task.done():
            return envelope("pending", ticket=ticket)
        del self._running[ticket]
        if task.cancelled():
            return envelope("failed", error="the inference was cancelled")
        error = task.exception()
        if error is not None:
            # It goes to whoever asked; an author's error may name what nobody else is to know.
            return envelope("failed", error=clean(f"{type(error).__name__}: {error}"))
        return task.result()

    def _forget(self) -> None:
        oldest = time.monotonic() - KEEP_SECONDS
        while self._running:
            made, task = next(iter(self._running.values()))
            if made > oldest and len(self._running) < MAX_TICKETS:
                return
            self._running.popitem(last=False)
            task.cancel()
