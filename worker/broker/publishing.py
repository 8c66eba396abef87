"""How a message gets into its queue in Redis: behind the others, before them, or by a script."""

from typing import Any, Literal

from kombu.utils.json import dumps

from shared import redis_broker
from shared.messages import JsonObject
from worker.runs.publisher import NEXT_STEP, STEP_HEADER, collected_messages
from worker.runs.store import CollectedMessage


class PublishingChannel(redis_broker.Channel):
    """Puts the next step of a run before all that is in its queue: runs are completed before others begin.

    A message that is published within `CeleryPublisher.collecting` is given to the publisher instead.
    """

    def _put(self, queue: str, message: JsonObject, **kwargs: Any) -> None:
        headers = message.get("headers") or {}
        is_next = headers.get(STEP_HEADER) == NEXT_STEP and not headers.get("eta")
        collected = None if headers.get("eta") else collected_messages()
        if kwargs.get("_publish_batch") is not None or not (is_next or collected is not None):
            super()._put(queue, message, **kwargs)
            return
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        command: Literal["LPUSH", "RPUSH"] = "RPUSH" if is_next else "LPUSH"
        if collected is not None:
            collected.append(CollectedMessage(f"{self.global_keyprefix}{key}", command, dumps(message)))
            return
        with self.conn_or_acquire() as client:
            (client.rpush if is_next else client.lpush)(key, dumps(message))
