"""The messages that consumers hold, when each is delivered again, and acknowledgements that are pending."""

import json
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from kombu.transport import redis, virtual
from redis import Redis

from worker.lua import Scripts

HELD_KEY = "synapse:broker:held"
"""Hash: by delivery tag, the list that the message came from, a line feed, the message."""

DUE_KEY = "synapse:broker:due"
"""Sorted set: delivery tags by the time, Redis's, at which the message is delivered again."""

IN_ONE_GO = 100
"""Messages moved by one script, so that Redis serves others in between."""


class Unacked:
    """Acknowledges, renews and gives back held messages; fetching is in the channel."""

    def __init__(self, client: "Redis", held_key: str = HELD_KEY, due_key: str = DUE_KEY) -> None:
        self.client = client
        self._scripts = Scripts(client, "worker.broker")
        self._keys = [held_key, due_key]

    def remove(self, tag: str) -> None:
        """The message is done with."""
        self._scripts.run("remove", self._keys, tag)

    def give_back(self, tags: Sequence[str], *, last: bool = False, only_due: bool = False) -> int:
        """Put messages back on their lists, marked as redelivered; returns how many were still held.

        They are the next to be taken, or with `last` the last. Of several who give a message back at the same
        time only one does.
        """
        given = 0
        for some in _batches(tags, IN_ONE_GO):
            entries = self.client.hmget(self._keys[0], some)
            texts: list[Any] = []
            for tag, entry in zip(some, entries, strict=True):
                if entry is not None:
                    texts += [tag, marked(entry.partition(b"\n")[2])]
            if texts:
                side = "LPUSH" if last else "RPUSH"
                given += self._scripts.run("give_back", self._keys, side, int(only_due), *texts)
        return given

    def give_back_overdue(self) -> int:
        """Put back what nobody has acknowledged in time; returns how many."""
        given = 0
        while True:
            tags = self._scripts.run("overdue", self._keys, IN_ONE_GO)
            given += self.give_back([tag.decode() for tag in tags], only_due=True)
            if len(tags) < IN_ONE_GO:
                return given

    def renew(self, tags: Iterable[str], seconds: float) -> None:
        """Start the time of messages anew that wait in a living worker."""
        for some in _batches(tags, IN_ONE_GO):
            self._scripts.run("renew", self._keys[1:], seconds, *some)


def _batches(tags: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for tag in tags:
        batch.append(tag)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def marked(text: bytes) -> bytes:
    """The message with the mark of a redelivery; as it is when it is not a message."""
    try:
        message = json.loads(text)
        message["headers"]["redelivered"] = True
        message["properties"]["delivery_info"]["redelivered"] = True
        return json.dumps(message).encode()
    except Exception:  # of any kind: it goes back as it came, and whoever takes it refuses it
        return text


Debt = Callable[[Unacked], Any]


class Debts:
    """Acknowledgements and hand-backs that did not reach one Redis, oldest first."""

    def __init__(self) -> None:
        self._owed: deque[Debt] = deque()
        self._paying = threading.Lock()

    def __len__(self) -> int:
        return len(self._owed)

    def add(self, debt: Debt) -> None:
        """Remember; from any thread."""
        self._owed.append(debt)

    def pay(self, unacked: Unacked) -> None:
        """Tell Redis everything; raises what Redis raises, and what it was not told stays owed."""
        with self._paying:
            while self._owed:
                self._owed[0](unacked)
                self._owed.popleft()


_debts: dict[tuple[str, ...], Debts] = {}


def debts_of(*broker: object) -> Debts:
    """The debts of this process towards a broker, named by host, port and database."""
    return _debts.setdefault(tuple(map(str, broker)), Debts())


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
