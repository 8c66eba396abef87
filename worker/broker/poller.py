"""Kombu's poller, with the bells of channels whose queues are empty."""

from typing import Any

from kombu.transport import redis

from worker.broker.bell import Bell

LONGEST_REST = 1.0
"""Seconds. Empty queues are looked at so often although no bell rang, should one have been lost."""

REST_WITHOUT_BELL = 0.05
"""Seconds between two looks at empty queues on a Redis that refuses key tracking."""

BELL = "BELL"


class Poller(redis.MultiChannelPoller):
    """Reads a bell at once, also when the worker wants no more messages: else it would spin on it."""

    loop: Any = None

    def add_bell(self, channel: Any, bell: Bell) -> None:
        """Poll the bell's connection."""
        self._register(channel, bell, BELL)

    def rest_shortly(self) -> None:
        """Make the event loop come round soon."""
        if self.loop is not None:
            self.loop.call_later(REST_WITHOUT_BELL, lambda: None)

    def on_readable(self, fileno: int) -> Any:
        """An event on one of our connections."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == BELL:
            return channel.handlers[BELL]()
        return super().on_readable(fileno)

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """One round without an event loop; never longer than until the next look."""
        rest = LONGEST_REST
        if any(channel.rests_shortly for channel in self._channels):
            rest = REST_WITHOUT_BELL
        return super().get(callback, timeout=rest if timeout is None else min(timeout, rest))
