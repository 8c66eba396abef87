"""The messages that consumers hold: what each was, and when it is delivered again.

Apart from stock kombu's `unacked`, so that another application's workers on the same Redis, with a
visibility timeout of their own, never restore our messages nor we theirs. All times are Redis's: a worker
whose clock is off neither restores early nor late. Each delivery has a tag of its own, so that the
acknowledgement of a first copy leaves the bookkeeping of the second alone (kombu uses the message's tag for
both).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

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
