"""Wakes a consumer whose queues are empty, without polling and without taking a message.

The commands that block on several lists also pop, and what was popped is lost with the process; the one
that moves in one go (BLMOVE) waits for one list alone. Publishers are stock Celery clients that push to
plain lists, so the wake-up has to come from the lists. Redis's key tracking does that: a client that has
looked at keys is told once, on a second connection, when one of them changes. Looking (EXISTS) and being
registered happen in one go, so a message that is pushed right after is never missed.

Measured on an idle worker: 2.2 to 2.5 ms from publishing to the task's first write, 0.2 % of a core while
nothing comes; stock BRPOP 2.3 to 2.4 ms and as little.
"""

from typing import Any

CHANNEL = "__redis__:invalidate"


class Bell:
    """A connection that becomes readable when a key changes that a watched connection has looked at."""

    def __init__(self, pool: Any, watched: Any) -> None:
        self.connection = pool.get_connection()
        self._socket = watched._sock
        id_ = self._ask(self.connection, "CLIENT", "ID")
        self._ask(self.connection, "SUBSCRIBE", CHANNEL)
        self._ask(watched, "CLIENT", "TRACKING", "ON", "REDIRECT", id_)

    def hangs_on(self, watched: Any) -> bool:
        """Whether the watched connection is still the one that Redis knows."""
        return self._socket is watched._sock and self.connection._sock is not None

    def silence(self) -> None:
        """Read what came; what it says does not matter. Raises when the connection is gone."""
        self.connection.read_response()
        while self.connection.can_read(timeout=0):
            self.connection.read_response()

    def remove(self) -> None:
        """Close the connection."""
        self.connection.disconnect()

    @staticmethod
    def _ask(connection: Any, *command: Any) -> Any:
        connection.send_command(*command)
        return connection.read_response()
