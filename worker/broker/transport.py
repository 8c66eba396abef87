"""The transport for `redis://` URLs: kombu's own with another channel."""

from typing import Any

from kombu.transport import redis

from worker.broker.channel import Channel
from worker.broker.poller import Poller


class Transport(redis.Transport):
    """Publishing, fan-out (`inspect`, events) and everything else is kombu's."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Join the worker's event loop."""
        self.cycle.loop = loop
        super().register_with_event_loop(connection, loop)
