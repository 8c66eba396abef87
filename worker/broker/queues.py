"""What waits in the queues of a Redis, also in those on which no worker listens."""

from collections.abc import Iterable, Sequence
from typing import Final

from kombu.transport.redis import Channel, Transport
from redis import Redis
from redis.exceptions import NoPermissionError

from shared.messages import DeployMessage
from worker.broker.config import QUEUES
from worker.broker.keys import delayed_key, unacked_key

DEFAULT_QUEUE: Final = "celery"
"""Where Celery puts a message that is sent without `queue=`."""

_SCAN_COUNT: Final = 1000
_PIDBOX: Final = ".pidbox"
_EVENTS: Final = "celeryev"


def waiting_messages(redis: "Redis", keyprefix: str = "") -> dict[str, int]:
    """How many messages wait in each queue, delayed ones included; queues without any are left out.

    `keyprefix` is the transport's `global_keyprefix`. Queues that the user may not read are left out, too.
    """
    counts = {queue: _count(redis, queue, keyprefix) for queue in sorted(_queues(redis, keyprefix))}
    return {queue: count for queue, count in counts.items() if count}


def _queues(redis: "Redis", keyprefix: str) -> set[str]:
    """The contract's, Celery's default, those of the agents, and others to which somebody has published."""
    lists = f"{keyprefix}{DeployMessage.queue}."
    delayed = f"{keyprefix}{delayed_key(DeployMessage.queue)}."
    found = {*QUEUES, DEFAULT_QUEUE}
    try:
        for start in (lists, delayed):
            keys: Iterable[str | bytes] = redis.scan_iter(f"{start}*", count=_SCAN_COUNT)
            names = (key.decode() if isinstance(key, bytes) else key for key in keys)
            agents = {name.removeprefix(start).partition(Channel.sep)[0] for name in names}
            found |= {f"{DeployMessage.queue}.{agent}" for agent in agents if agent.isdigit()}
        found |= _declared_queues(redis, keyprefix)
    except NoPermissionError:
        pass
    return found


def _declared_queues(redis: "Redis", keyprefix: str) -> set[str]:
    """The queues that publishers have declared, without those of Celery's remote control and events."""
    found: set[str] = set()
    start = f"{keyprefix}{Channel.keyprefix_queue % ''}"
    for key in redis.scan_iter(f"{start}*", count=_SCAN_COUNT, _type="set"):
        for member in redis.smembers(key):
            name = (member.decode() if isinstance(member, bytes) else member).rpartition(Channel.sep)[2]
            if name and not name.endswith(_PIDBOX) and not name.startswith(_EVENTS):
                found.add(name)
    return found


def _count(redis: "Redis", queue: str, keyprefix: str) -> int:
    try:
        waiting, delayed = queue_lengths(redis, [queue], keyprefix)[queue]
    except NoPermissionError:
        return 0
    return waiting + delayed


def queue_lengths(redis: "Redis", queues: Sequence[str], keyprefix: str = "") -> dict[str, tuple[int, int]]:
    """How many messages of each queue wait, of all priorities, and how many are delayed."""
    steps = Transport.Channel.priority_steps
    with redis.pipeline(transaction=False) as pipeline:
        for queue in queues:
            for step in steps:
                pipeline.llen(f"{keyprefix}{queue}{Channel.sep}{step}" if step else f"{keyprefix}{queue}")
            pipeline.zcard(f"{keyprefix}{delayed_key(queue)}")
        found = iter(pipeline.execute())
    return {queue: (sum(next(found) for _ in steps), next(found)) for queue in queues}


def held_messages(redis: "Redis", keyprefix: str = "") -> int:
    """How many messages the workers hold, which are those that are not acknowledged."""
    return int(redis.hlen(f"{keyprefix}{unacked_key()}"))
