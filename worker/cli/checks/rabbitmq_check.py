"""What `doctor` checks where RabbitMQ is the broker: the user's rights, and what is left in the Redis."""

from collections.abc import Callable, Iterator
from typing import Any, Final

from kombu.transport import pyamqp
from redis import Redis

from shared import DeployMessage
from worker.broker import Connection
from worker.broker.config import QUEUES
from worker.broker.queues import held_messages, waiting_messages
from worker.cli.checks.report import Finding

EVENTS, REMOTE_CONTROL, REPLIES = "celeryev", "celery.pidbox", "reply.celery.pidbox"
"""The exchanges that Celery declares."""

_OWN_REMOTE_CONTROL: Final = "doctor.celery.pidbox"
"""As the queue in which a worker hears remote control is called; there is no queue of this name."""
_DEFAULT_EXCHANGE: Final = "amq.default"
_NO_ROUTE: Final = "doctor.no.such.queue"
_UNUSABLE: Final = {"x-dead-letter-exchange": 0}
"""Arguments of a queue that RabbitMQ rejects: a name has to be a text."""
_DENIED: Final = 403
_PAGE: Final = "docs/rabbitmq.md has all of them"


def missing_rights(connection: Connection, agent: int | None = None) -> Iterator[Finding]:
    """What a worker does that this connection's user may not do. Nothing is made, deleted or read.

    RabbitMQ checks the rights to a name before it looks whether there is something of that name.
    `agent`: the WORKER_AGENT of a worker that serves one alone, and so has one queue more.
    """
    queues = QUEUES if agent is None else (*QUEUES, DeployMessage.agent_queue(agent))
    missing = [queue for queue in queues if not _exists(connection, queue)]
    declared = [EVENTS, REMOTE_CONTROL, REPLIES, _OWN_REMOTE_CONTROL]
    rights = {
        "configure": [name for name in (*missing, *declared) if not _may_configure(connection, name)],
        "write": [name for name in (*missing, *declared) if not _may_write(connection, name)],
        "read": [
            name
            for name in (*queues, REMOTE_CONTROL, REPLIES, _OWN_REMOTE_CONTROL)
            if not _may_read(connection, name)
        ],
    }
    if not _may(connection, _publish):
        rights["write"].append(_DEFAULT_EXCHANGE)
    for right, names in rights.items():
        if names:
            yield Finding(f"the user lacks the right to {right} {', '.join(names)}: {_PAGE}")


def left_in_redis(redis: "Redis", keyprefix: str = "") -> Iterator[Finding]:
    """What lies in the worker's queues in the Redis of the runs, from when that was the broker."""
    for queue, count in waiting_messages(redis, keyprefix).items():
        if queue.split(".")[0] in QUEUES:
            yield _left(count, f"in {queue} of")
    if count := held_messages(redis, keyprefix):
        yield _left(count, "unacknowledged in")


def _left(count: int, where: str) -> Finding:
    lie, them = ("1 message lies", "it") if count == 1 else (f"{count} messages lie", "them")
    advice = f"a worker without CELERY_BROKER_URL reads {them} (docs/rabbitmq.md)"
    return Finding(f"{lie} {where} the Redis of REDIS_URL: {advice}", is_error=False)


def _exists(connection: Connection, queue: str) -> bool:
    channel = connection.channel()
    try:
        channel.queue_declare(queue, passive=True)
    except pyamqp.Connection.channel_errors:
        return False
    channel.close()
    return True


def _may_configure(connection: Connection, name: str) -> bool:
    """Asked by declaring a queue that RabbitMQ cannot make, whether it has one of this name or not.

    To delete one that is not there would do, too, but one that has crashed is not there either, and RabbitMQ
    deletes it with its messages.
    """
    return _may(connection, lambda channel: channel.queue_declare(name, durable=True, arguments=_UNUSABLE))


def _may_write(connection: Connection, name: str) -> bool:
    """Asked by removing a binding that is not there: that writes to the queue and reads the exchange."""
    return _may(connection, lambda channel: channel.queue_unbind(name, name, _NO_ROUTE), "access to queue")


def _may_read(connection: Connection, name: str) -> bool:
    """Likewise; true where the user may not even write to the queue of remote control."""
    queue = _OWN_REMOTE_CONTROL
    return _may(connection, lambda each: each.queue_unbind(queue, name, _NO_ROUTE), "access to exchange")


def _publish(channel: Any) -> None:
    """Publish what no queue gets, and wait for an answer to something else."""
    message = channel.prepare_message("{}", content_type="application/json", content_encoding="utf-8")
    channel.basic_publish(message, exchange="", routing_key=_NO_ROUTE)
    channel.basic_qos(0, 1, False)


def _may(connection: Connection, function: Callable[[Any], object], denial: str = "") -> bool:
    """Whether RabbitMQ denies nothing, on a channel of its own, which it closes with an error.

    `denial`: what the text of the denial has, where there may be others.
    """
    channel = connection.channel()
    try:
        function(channel)
    except pyamqp.Connection.channel_errors as error:
        return not (getattr(error, "code", 0) == _DENIED and denial in str(error))
    channel.close()
    return True
