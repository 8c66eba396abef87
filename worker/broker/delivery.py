"""Unacknowledged messages, their time of redelivery, and acknowledgements that Redis has not received yet."""

import json
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from math import inf
from time import monotonic
from typing import Any, Final

from kombu.transport import redis, virtual
from redis import Redis

from shared.messages import JsonObject
from worker.broker.config import queue_limit
from worker.broker.keys import delayed_key, earlier_key, redelivery_key, unacked_key
from worker.chunk_requests import chunk_requests
from worker.lua import Scripts
from worker.runs.bulkhead import bulkhead

WAKE_SECONDS = 10
"""A token or a wake-up that nobody has taken by then is deleted."""

STUCK_SECONDS = 5.0
"""After so long without an end of any, chunks count as stuck, and further ones are fetched beside them: those
of other releases find a slot."""

BATCH_SIZE = 100
"""Messages that one script moves, so that Redis serves other clients in between."""


class Unacked:
    """Acknowledges, extends, delays and requeues unacknowledged messages; the channel fetches them."""

    def __init__(
        self, client: "Redis", keyprefix: str = "", queue_of: Callable[[str], str] = lambda name: name
    ) -> None:
        """`client` adds no prefix of its own; `keyprefix` is the transport's `global_keyprefix`.

        `queue_of`: the queue to which a list belongs.
        """
        self.client = client
        self._keyprefix = keyprefix
        self._queue_of = queue_of
        self._scripts = Scripts(client, "worker.broker")
        self._keys = [keyprefix + unacked_key(), keyprefix + redelivery_key()]

    def remove(self, tag: str) -> None:
        """Acknowledge a message."""
        self._scripts.run("remove", self._keys, tag)

    def requeue(self, tags: Sequence[str], *, last: bool = False, only_overdue: bool = False) -> int:
        """Put messages back on their lists, marked as redelivered; returns how many were unacknowledged.

        They are fetched next, or with `last` after all others. Of several processes that requeue a message at
        the same time, only one does.
        """
        requeued = 0
        for some in _batches(tags, BATCH_SIZE):
            entries = self.client.hmget(self._keys[0], some)
            texts: list[Any] = []
            for tag, entry in zip(some, entries, strict=True):
                if entry is not None:
                    texts += [tag, mark_redelivered(entry.partition(b"\n")[2])]
            if texts:
                side = "LPUSH" if last else "RPUSH"
                requeued += self._scripts.run("requeue", self._keys, side, int(only_overdue), *texts)
        return requeued

    def requeue_overdue(self) -> int:
        """Put messages back that nobody has acknowledged in time; returns how many."""
        requeued = 0
        while True:
            tags = self._scripts.run("overdue", self._keys, BATCH_SIZE)
            requeued += self.requeue([tag.decode() for tag in tags], only_overdue=True)
            if len(tags) < BATCH_SIZE:
                return requeued

    def delay(self, queue: str, text: str, seconds: float) -> None:
        """Publish a message of `queue` that is due in `seconds`; `text`: its list, a line feed, itself."""
        self._scripts.run("delay", self.delayed_keys(queue), seconds, "", text)

    def delay_fetched(self, tag: str, seconds: float) -> None:
        """Keep a fetched message for so long; it goes back to its list then."""
        self._delay_fetched(tag, seconds, "")

    def delay_until(self, tag: str, due: float) -> bool:
        """Keep a fetched message until that time on Redis's clock; returns whether that is still to come."""
        return self._delay_fetched(tag, due, "1")

    def _delay_fetched(self, tag: str, *when: float | str) -> bool:
        entry = self.client.hget(self._keys[0], tag)
        if entry is None:
            return True  # It was redelivered.
        keys = [*self.delayed_keys(self._queue_of(entry.partition(b"\n")[0].decode())), *self._keys]
        return bool(self._scripts.run("delay", keys, *when, tag))

    def delayed_keys(self, queue: str) -> tuple[str, str]:
        """The keys of a queue's delayed messages for a script that adds one."""
        return self._keyprefix + delayed_key(queue), self._keyprefix + earlier_key()

    def drop_delayed(self, queue: str) -> int:
        """Delete the delayed messages of a queue; returns how many."""
        key = self.delayed_keys(queue)[0]
        with self.client.pipeline() as pipeline:
            count, _ = pipeline.zcard(key).delete(key).execute()
        return int(count)

    def release_watch(self, keys: Sequence[str], consumer: str) -> None:
        """Let another consumer watch; `keys` are those of the watcher and of the tokens."""
        self._scripts.run("release", keys, consumer)

    def wake(self, key: str) -> None:
        """Wake the consumer that waits on this key."""
        with self.client.pipeline(transaction=False) as pipeline:
            pipeline.lpush(key, "").expire(key, WAKE_SECONDS).execute()

    def extend(self, tags: Iterable[str], seconds: float) -> None:
        """Redeliver these messages no earlier than `seconds` from now: they wait in a living worker."""
        for some in _batches(tags, BATCH_SIZE):
            self._scripts.run("extend", self._keys[1:], seconds, *some)


def _batches(tags: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for tag in tags:
        batch.append(tag)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


DELIVERIES: Final = "deliveries"
"""The property of a message that says how often it was delivered, this time included."""


def mark_redelivered(text: bytes) -> bytes:
    """The message with the flag of a redelivery and its count; unchanged when it is not a message."""
    try:
        message = json.loads(text)
        message["headers"]["redelivered"] = True
        properties = message["properties"]
        properties["delivery_info"]["redelivered"] = True
        properties[DELIVERIES] = delivery_count(properties) + 1
        return json.dumps(message).encode()
    except Exception:  # of any kind: it is requeued unchanged, and the next worker rejects it
        return text


def delivery_count(properties: JsonObject) -> int:
    """How often a message with these properties was delivered, this time included."""
    count = properties.get(DELIVERIES)
    return count if isinstance(count, int) and count > 0 else 1


AckCommand = Callable[[Unacked], object]
"""An acknowledgement or a requeue."""


class PendingAcks:
    """Acknowledgements and requeues that one Redis has not received yet, oldest first. Safe for threads."""

    def __init__(self) -> None:
        self._commands: deque[AckCommand] = deque()
        self._flushing = threading.Lock()

    def __len__(self) -> int:
        return len(self._commands)

    def add(self, command: AckCommand) -> None:
        """Remember a command that failed."""
        self._commands.append(command)

    def flush(self, unacked: Unacked) -> None:
        """Run all commands; raises what Redis raises, and the commands that were not run stay pending."""
        with self._flushing:
            while self._commands:
                self._commands[0](unacked)
                self._commands.popleft()


_pending_acks: dict[tuple[str, ...], PendingAcks] = {}


def pending_acks_of(*broker: object) -> PendingAcks:
    """This process's pending acknowledgements for a broker, named by host, port and database."""
    return _pending_acks.setdefault(tuple(map(str, broker)), PendingAcks())


class QoS(redis.QoS):
    """Counts the unacknowledged messages; their records in Redis are made by the script that fetches them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tags_of_queue: dict[str, set[str]] = {}
        self._full_since: dict[str, float] = {}
        """Since when another message of the queue would find no slot of its release."""

    def is_full(self, queue: str) -> bool:
        """Whether as many messages of this queue are held as the worker works on at a time."""
        return self._remaining(queue) <= 0

    def is_free(self, queues: Iterable[str]) -> bool:
        """Whether less than half of what may be held is, and one message would leave room for another."""
        held, most = len(self._delivered) - len(self._dirty), self.prefetch_count
        if most and not (2 * held < most and held + 1 < most):
            return False
        return all(self._remaining(queue) > 1 for queue in queues)

    def hold(self, delivery_tag: str, queue: str) -> None:
        """Count a message that was fetched from `queue`, until it is acknowledged or given back."""
        if queue_limit(queue) is not None:
            self._tags_of_queue.setdefault(queue, set()).add(delivery_tag)

    def _remaining(self, queue: str) -> float:
        limit = queue_limit(queue)
        if limit is None:
            return inf
        held = len(self._tags_of_queue.get(queue, ()))
        if not bulkhead.may_have_chunk_slot(held):
            since = self._full_since.setdefault(queue, monotonic())
            return limit - held if monotonic() - since >= STUCK_SECONDS else 0
        self._full_since.pop(queue, None)
        return limit - held if chunk_requests.have_free(held, self._fetch_soon) else 0

    def _fetch_soon(self) -> None:
        """Fetch again. From any thread, also while the channel is closed: its successor fetches anyway."""
        connection = self.channel.connection
        loop = None if connection is None else connection.cycle.loop
        if loop is not None:
            loop.call_soon(self.channel.fetch_soon)

    def _settle(self, delivery_tag: str) -> None:
        virtual.QoS.ack(self, delivery_tag)
        self._free([delivery_tag])

    def _free(self, delivery_tags: Iterable[str]) -> None:
        for queue, tags in self._tags_of_queue.items():
            was_full = self.is_full(queue)
            tags.difference_update(delivery_tags)
            is_full = self.is_full(queue)  # which also sees that the queue is no longer stuck
            if was_full and not is_full:
                self.channel.fetch_soon()

    def append(self, message: Any, delivery_tag: str) -> None:
        """Count a message. Stock kombu records it in Redis only here, after it was popped."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message; never raises because Redis is unavailable: it is acknowledged later then."""
        self.channel.run_or_defer(lambda unacked: unacked.remove(delivery_tag))
        self._settle(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drop a message, or with `requeue` put it at the end of its queue."""
        if requeue:
            self.channel.run_or_defer(lambda unacked: unacked.requeue([delivery_tag], last=True))
            self._settle(delivery_tag)
        else:
            self.ack(delivery_tag)

    def release(self, delivery_tag: str) -> None:
        """Count a message no longer but leave it in Redis, which redelivers it when its time has come."""
        self._settle(delivery_tag)

    def requeue_held(self, keep: Collection[str] = ()) -> int:
        """Requeue all messages except `keep`, as if they had never been fetched; returns how many."""
        self._flush()
        # In reverse, because the last one requeued is the first to be fetched again.
        waiting = [tag for tag in reversed(self._delivered) if tag not in keep]
        for tag in waiting:
            del self._delivered[tag]
        self._free(waiting)
        if waiting:
            self.channel.run_or_defer(lambda unacked: unacked.requeue(waiting))
        return len(waiting)

    def forget(self) -> None:
        """Count nothing any more and leave Redis as it is: the tasks go on and acknowledge by their tags."""
        self._flush()
        self._delivered.clear()
        self._tags_of_queue.clear()

    def restore_unacked(self, client: Any = None) -> list[Any]:  # noqa: ARG002 - kombu's signature
        """Requeue all messages. None is reported as failed: a requeue that fails is run later."""
        self.requeue_held()
        return []

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:  # noqa: ARG002
        """Send, at intervals, what Redis has not received yet; a fetch finds what is overdue."""
        self.channel.pending_acks.flush(self.channel.unacked)
