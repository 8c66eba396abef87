"""How a consumer waits: for the news from Redis that a queue has changed, and for a moment of the clock."""

from time import monotonic
from typing import Any, Final

from kombu.transport import redis

INVALIDATION_CHANNEL: Final = "__redis__:invalidate"

INVALIDATION: Final = "INVALIDATION"
"""The kind of an event in kombu's poller, beside its own BRPOP and LISTEN."""


CACHING: Final = ("CLIENT", "CACHING", "YES")


class InvalidationListener:
    """A connection that becomes readable when a key changes that another connection has asked for.

    It receives the invalidation messages of Redis's client-side caching for the tracked connection.
    """

    def __init__(self, pool: Any) -> None:
        self.connection = pool.get_connection()
        self._id = self._command(self.connection, "CLIENT", "ID")
        self._command(self.connection, "SUBSCRIBE", INVALIDATION_CHANNEL)
        self._socket = self.connection._sock
        self._tracked: Any = None

    @property
    def is_connected(self) -> bool:
        """Whether it still has the connection that Redis knows by its id."""
        return self.connection._sock is not None and self._socket is self.connection._sock

    def track(self, connection: Any) -> None:
        """Hear of the keys that `connection` reads with a command right after `CACHING`.

        Without OPTIN, Redis 6 would track all keys of each script that reads one of them.
        """
        if self._tracked is not connection._sock:
            self._command(connection, "CLIENT", "TRACKING", "ON", "REDIRECT", self._id, "OPTIN", "NOLOOP")
            self._command(connection, *CACHING)
            self._tracked = connection._sock

    def untrack(self, connection: Any) -> None:
        """Hear nothing of what `connection` has read."""
        if self._tracked is not None and self._tracked is connection._sock:
            self._command(connection, "CLIENT", "TRACKING", "OFF")
        self._tracked = None

    def drain(self) -> None:
        """Read and ignore all invalidations that have arrived. Raises when the connection is lost."""
        self.connection.read_response()
        while self.connection.can_read(timeout=0):
            self.connection.read_response()

    def close(self) -> None:
        """Close the connection."""
        self.connection.disconnect()

    @staticmethod
    def _command(connection: Any, *command: Any) -> Any:
        connection.send_command(*command)
        return connection.read_response()


class Poller(redis.MultiChannelPoller):
    """Reads invalidations at once, even when the worker wants no more messages.

    Otherwise the event loop would find the listener's connection readable again and again.
    """

    loop: Any = None
    _wakes_at: float | None = None

    def add_listener(self, channel: Any, listener: InvalidationListener) -> None:
        """Poll the listener's connection."""
        self._register(channel, listener, INVALIDATION)

    def wake_at(self, moment: float) -> None:
        """Make the event loop run another iteration at that moment of the monotonic clock."""
        now = monotonic()
        is_awaited = self._wakes_at is not None and now < self._wakes_at <= moment
        if self.loop is not None and not is_awaited:
            self._wakes_at = moment
            self.loop.call_later(max(0.0, moment - now), self._wake)

    def _wake(self) -> None:
        self._wakes_at = None
        now = monotonic()
        for channel in self._channels:
            if channel.idle_until > now:
                self.wake_at(channel.idle_until)

    def on_poll_init(self, poller: Any) -> None:
        """Use the event loop's poller. Kombu redelivers here, before the consumer has caught up."""
        self.poller = poller

    def on_readable(self, fileno: int) -> Any:
        """Handle an event on one of the channels' connections."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == INVALIDATION:
            return channel.handlers[INVALIDATION]()
        return super().on_readable(fileno)

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Poll once without an event loop, no longer than until one of the channels is to look again."""
        now = monotonic()
        waits = [channel.idle_until - now for channel in self._channels if channel.idle_until > now]
        longest = min(waits, default=1.0)
        return super().get(callback, timeout=longest if timeout is None else min(timeout, longest))
