"""Which messages a channel holds, and what becomes of them."""

from collections.abc import Collection
from typing import Any

from kombu.transport import redis, virtual


class QoS(redis.QoS):
    """Counts what is held; the bookkeeping in Redis is done by the script that fetched it."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Hold a message. Stock writes it down only here, after it was popped."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Never raises for a Redis that is away: it is told later."""
        self.channel.tell(lambda unacked: unacked.remove(delivery_tag))
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drop a message, or with `requeue` put it at the end of its queue."""
        if requeue:
            self.channel.tell(lambda unacked: unacked.give_back([delivery_tag], last=True))
            virtual.QoS.ack(self, delivery_tag)
        else:
            self.ack(delivery_tag)

    def leave(self, delivery_tag: str) -> None:
        """Hold a message no longer but leave it in Redis: it is delivered again when its time is up."""
        virtual.QoS.ack(self, delivery_tag)

    def hand_back(self, keep: Collection[str] = ()) -> int:
        """Give back what is held except `keep`, as if it had never been taken; returns how many."""
        self._flush()
        # The last one given back is the first to be taken again.
        waiting = [tag for tag in reversed(self._delivered) if tag not in keep]
        for tag in waiting:
            del self._delivered[tag]
        if waiting:
            self.channel.tell(lambda unacked: unacked.give_back(waiting))
        return len(waiting)

    def forget(self) -> None:
        """Hold nothing any more without telling Redis: the tasks go on and acknowledge by their tags."""
        self._flush()
        self._delivered.clear()

    def restore_unacked(self, client: Any = None) -> list[Any]:  # noqa: ARG002 - kombu's signature
        """Give back everything that is held; the answer is what could not be, which is owed instead."""
        self.hand_back()
        return []

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:  # noqa: ARG002
        """The periodic look at what nobody acknowledged in time."""
        self.channel.sweep()
