"""How a message gets into its queue in Redis: behind the others, before them, later, or by a script."""

from functools import cached_property
from time import time
from typing import Any, Literal

from kombu.utils.json import dumps
from redis import Redis

from shared import redis_broker
from shared.messages import JsonObject
from worker.broker.delivery import Unacked
from worker.broker.validation import HONOURED_ETA, timestamp_of
from worker.lua import source_of
from worker.runs.publisher import NEXT_STEP, STEP_HEADER, collected_messages
from worker.runs.store import CollectedMessage

DELAY_SCRIPT = source_of("worker.broker", "delay")


class PublishingChannel(redis_broker.Channel):
    """Puts the next step of a run before all that is in its queue: runs are completed before others begin.

    A message with a countdown or an ETA is delayed by Redis, and says so by `HONOURED_ETA`.
    One that is published within `CeleryPublisher.collecting` is given to the publisher instead.
    """

    @cached_property
    def unacked(self) -> Unacked:
        """On a connection of the pool: acknowledging is safe from any thread and during a fetch."""
        return Unacked(self._unprefixed_client(), self.global_keyprefix, self._queue_of)

    def _unprefixed_client(self) -> Redis:
        """A client for scripts: kombu's adds `global_keyprefix` to some keys of some commands alone."""
        return Redis(connection_pool=self.pool)

    def _put(self, queue: str, message: JsonObject, **kwargs: Any) -> None:
        headers = message.get("headers") or {}
        batch = kwargs.get("_publish_batch")
        # A task that is retried publishes the headers that its message came with.
        headers.pop(HONOURED_ETA, None)
        if headers.get("eta") is not None:
            headers[HONOURED_ETA] = headers["eta"]
            seconds = timestamp_of(headers["eta"]) - time()
            if seconds > 0:
                self._delay(queue, message, seconds, batch)
                return
        is_next = headers.get(STEP_HEADER) == NEXT_STEP
        collected = collected_messages()
        if batch is not None or not (is_next or collected is not None):
            super()._put(queue, message, **kwargs)
            return
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        command: Literal["LPUSH", "RPUSH"] = "RPUSH" if is_next else "LPUSH"
        if collected is not None:
            keys = (f"{self.global_keyprefix}{key}", self.unacked.delayed_keys(queue)[1])
            collected.append(CollectedMessage(keys, command, dumps(message)))
            return
        with self.conn_or_acquire() as client:
            (client.rpush if is_next else client.lpush)(key, dumps(message))

    def _delay(self, queue: str, message: JsonObject, seconds: float, batch: Any = None) -> None:
        """Keep a message in Redis for so long, from when a `batch` of kombu's or a script publishes it."""
        name = self._list_key(queue, self._get_message_priority(message, reverse=False))
        text = f"{name}\n{dumps(message)}"
        keys = self.unacked.delayed_keys(queue)
        if batch is not None:
            batch.add("eval", DELAY_SCRIPT, 2, *keys, seconds, "", text)
        elif (collected := collected_messages()) is not None:
            collected.append(CollectedMessage(keys, "ZADD", text, seconds))
        else:
            self.unacked.delay(queue, text, seconds)

    def _purge(self, queue: str) -> int:
        return int(super()._purge(queue)) + self.unacked.drop_delayed(queue)

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        super()._delete(queue, *args, **kwargs)
        self.unacked.drop_delayed(queue)

    def _list_key(self, queue: str, priority: int) -> str:
        """The whole key of a queue's list, as scripts and commands on a bare connection name it."""
        return f"{self.global_keyprefix}{self._q_for_pri(queue, priority)}"

    def _queue_of(self, name: str) -> str:
        return name.removeprefix(self.global_keyprefix).rsplit(self.sep, 1)[0]
