"""How a message gets into its queue in Redis: behind the others, before them, later, or by a script."""

from abc import abstractmethod
from time import time
from typing import Any, Literal

from kombu.utils.json import dumps

from shared import redis_broker
from shared.messages import JsonObject
from worker.broker.validation import timestamp_of
from worker.runs.publisher import NEXT_STEP, STEP_HEADER, collected_messages
from worker.runs.store import CollectedMessage


class PublishingChannel(redis_broker.Channel):
    """Puts the next step of a run before all that is in its queue: runs are completed before others begin.

    A message with a countdown or an ETA is delayed by Redis, and has neither when it is in its queue.
    One without, published within `CeleryPublisher.collecting`, is given to the publisher instead.
    """

    def _put(self, queue: str, message: JsonObject, **kwargs: Any) -> None:
        headers = message.get("headers") or {}
        batch = kwargs.get("_publish_batch")
        if headers.get("eta") is not None:
            seconds = timestamp_of(headers["eta"]) - time()
            message = {**message, "headers": {**headers, "eta": None}}
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
            collected.append(CollectedMessage(f"{self.global_keyprefix}{key}", command, dumps(message)))
            return
        with self.conn_or_acquire() as client:
            (client.rpush if is_next else client.lpush)(key, dumps(message))

    @abstractmethod
    def _delay(self, queue: str, message: JsonObject, seconds: float, batch: Any = None) -> None:
        """Keep a message in Redis for so long; with a `batch` of kombu's, when that is executed."""
