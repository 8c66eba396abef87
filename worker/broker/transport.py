"""The transport for `redis://`: fetches messages so that none is lost, keeps those that cannot be read."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from queue import Empty
from time import monotonic
from typing import Any, ClassVar, Literal
from uuid import uuid4

import structlog
from kombu.transport import redis
from redis import Redis
from redis.exceptions import ResponseError

from shared import redis_broker
from shared.messages import JsonObject
from worker.broker.delivery import (
    AckCommand,
    PendingAcks,
    QoS,
    Unacked,
    pending_acks_of,
    redelivery_key,
    unacked_key,
)
from worker.broker.publishing import PublishingChannel
from worker.broker.rejections import keep_rejected, rejected_element
from worker.broker.validation import MalformedError, parse_element
from worker.lua import source_of

log = structlog.get_logger(__name__)

INVALIDATION_CHANNEL = "__redis__:invalidate"


class InvalidationListener:
    """A connection that becomes readable when a key changes that another connection has read.

    It receives the invalidation messages of Redis's client-side caching for the tracked connection.
    """

    def __init__(self, pool: Any, tracked: Any) -> None:
        self.connection = pool.get_connection()
        self._socket = tracked._sock
        id_ = self._command(self.connection, "CLIENT", "ID")
        self._command(self.connection, "SUBSCRIBE", INVALIDATION_CHANNEL)
        self._command(tracked, "CLIENT", "TRACKING", "ON", "REDIRECT", id_)

    def is_tracking(self, tracked: Any) -> bool:
        """Whether `tracked` is still the connection for which Redis sends the invalidations."""
        return self._socket is tracked._sock and self.connection._sock is not None

    def drain(self) -> None:
        """Read and ignore all invalidations that have arrived. Raises when the connection is lost."""
        self.connection.read_response()
        while self.connection.can_read(timeout=0):
            self.connection.read_response()

    def close(self) -> None:
        """Close the connection."""
        self.connection.disconnect()

    @staticmethod
    def _command(connection: Any, *command: Any) -> Any:
        connection.send_command(*command)
        return connection.read_response()


MAX_IDLE_SECONDS = 1.0
"""Empty queues are read this often even without an invalidation, in case one was lost."""

UNTRACKED_POLL_SECONDS = 0.05
"""Time between two reads of empty queues on a Redis that rejects key tracking."""

INVALIDATION = "INVALIDATION"
"""The kind of an event in kombu's poller, beside its own BRPOP and LISTEN."""


class Poller(redis.MultiChannelPoller):
    """Reads invalidations at once, even when the worker wants no more messages.

    Otherwise the event loop would find the listener's connection readable again and again.
    """

    loop: Any = None

    def add_listener(self, channel: Any, listener: InvalidationListener) -> None:
        """Poll the listener's connection."""
        self._register(channel, listener, INVALIDATION)

    def wake_soon(self) -> None:
        """Make the event loop run another iteration after `UNTRACKED_POLL_SECONDS`."""
        if self.loop is not None:
            self.loop.call_later(UNTRACKED_POLL_SECONDS, lambda: None)

    def on_poll_init(self, poller: Any) -> None:
        """Use the event loop's poller. Kombu redelivers here, before the consumer has caught up."""
        self.poller = poller

    def on_readable(self, fileno: int) -> Any:
        """Handle an event on one of the channels' connections."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == INVALIDATION:
            return channel.handlers[INVALIDATION]()
        return super().on_readable(fileno)

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Poll once without an event loop, no longer than until the queues must be read again."""
        longest = MAX_IDLE_SECONDS
        if any(channel.polls_often for channel in self._channels):
            longest = UNTRACKED_POLL_SECONDS
        return super().get(callback, timeout=longest if timeout is None else min(timeout, longest))


FETCH_SCRIPT = source_of("worker.broker", "fetch")


class Channel(PublishingChannel):
    """Fetches messages with a script, and waits for new ones with an `InvalidationListener`.

    Where stock kombu waits in BRPOP, this channel runs `fetch`. When all lists are empty, it sends EXISTS for
    their keys, so that Redis tracks them and reports when one of them changes.
    """

    QoS = QoS
    # With version 2 of Redis's protocol invalidations are messages to a subscription. It is set here because
    # redis-py's default changes, and a URL may ask for another.
    needed_options: ClassVar[Mapping[str, Any]] = {"protocol": 2}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._listener: InvalidationListener | None = None
        self._tracking_unavailable = False
        self._idle_until = 0.0
        self._invalidated_meanwhile = False
        self._sent: Literal["fetch", "exists"] = "fetch"
        self._fetch_tag = ""
        self._no_ack_queues: set[str] = set()
        super().__init__(*args, **kwargs)
        self.handlers[INVALIDATION] = self._on_invalidation
        broker = self.connection.client
        self.pending_acks: PendingAcks = pending_acks_of(broker.hostname, broker.port, broker.virtual_host)

    # -- unacknowledged messages ---------------------------------------------------------------------------

    @cached_property
    def unacked(self) -> Unacked:
        """On a connection of the pool: acknowledging is safe from any thread and during a fetch."""
        return Unacked(self._unprefixed_client(), self.global_keyprefix)

    def _unprefixed_client(self) -> Redis:
        """A client for scripts: kombu's adds `global_keyprefix` to some keys of some commands alone."""
        return Redis(connection_pool=self.pool)

    def run_or_defer(self, command: AckCommand) -> None:
        """Run a command now, or when Redis is available again."""
        if not self.closed:
            try:
                command(self.unacked)
                return
            except Exception as error:
                # Of any kind: a connection that the consumer closes amid a thread's command, as it does when
                # the broker is lost, raises a ValueError or an AttributeError.
                log.warning("acknowledgement deferred", error_type=type(error).__name__)
        self.pending_acks.add(command)

    def redeliver_overdue(self) -> None:
        """Run the pending commands, then requeue what nobody acknowledged in time."""
        self.pending_acks.flush(self.unacked)
        if monotonic() < self.connection.redelivers_from:
            return
        if requeued := self.unacked.requeue_overdue():
            log.info("overdue messages requeued", count=requeued)

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        self.run_or_defer(lambda unacked: unacked.requeue([message.delivery_tag], last=leftmost))

    # -- fetching ------------------------------------------------------------------------------------------

    @property
    def polls_often(self) -> bool:
        """Whether empty queues are polled at short intervals, because Redis rejects key tracking."""
        return self._tracking_unavailable

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Consume from `queue`; messages of a `no_ack` consumer are never recorded as unacknowledged."""
        (self._no_ack_queues.add if no_ack else self._no_ack_queues.discard)(queue)
        self._idle_until = 0.0
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Any:
        """One message without waiting, or None."""
        lists = [self._list_key(queue, priority) for priority in self.priority_steps]
        no_ack_queues = {queue} if no_ack else set()
        client = self._unprefixed_client()
        # A tag for each fetch: a message that can neither be read nor kept stays unacknowledged under it.
        while reply := client.eval(*self._fetch_command(tag := uuid4().hex, lists, no_ack_queues)):
            raw = self._parse(reply[1], tag, no_ack)
            if raw is not None:
                message = self.Message(raw, channel=self)
                if not no_ack:
                    self.qos.append(message, tag)
                return message
        return None

    def _fetch_command(self, tag: str, lists: list[str], no_ack_queues: set[str]) -> list[Any]:
        acknowledged = ["0" if self._queue_of(name) in no_ack_queues else "1" for name in lists]
        prefix = self.global_keyprefix
        keys = [prefix + unacked_key(), prefix + redelivery_key(), *lists]
        return [FETCH_SCRIPT, len(keys), *keys, tag, self.visibility_timeout, *acknowledged]

    def _queue_of(self, name: str) -> str:
        return name.removeprefix(self.global_keyprefix).rsplit(self.sep, 1)[0]

    def _list_key(self, queue: str, priority: int) -> str:
        """The whole key of a queue's list, as scripts and commands on a bare connection name it."""
        return f"{self.global_keyprefix}{self._q_for_pri(queue, priority)}"

    def _queue_keys(self) -> list[str]:
        queues = self._queue_cycle.consume(len(self.active_queues))
        return [self._list_key(queue, priority) for priority in self.priority_steps for queue in queues]

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002 - kombu's signature
        if monotonic() < self._idle_until:
            return
        lists = self._queue_keys()
        if not lists:
            return
        connection = self.client.connection
        if not self._tracking_unavailable and not (
            self._listener is not None and self._listener.is_tracking(connection)
        ):
            self._start_listener(connection)
        self._fetch_tag = uuid4().hex
        self._send_command("fetch", "EVAL", *self._fetch_command(self._fetch_tag, lists, self._no_ack_queues))

    def _send_command(self, what: Literal["fetch", "exists"], *command: Any) -> None:
        self._sent = what
        self._invalidated_meanwhile = False
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self.client.connection.send_command(*command)

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ARG002 - kombu's signature
        reply = self._read_reply()
        if self._sent == "exists":
            # Invalidations have a connection of their own: the one for a message that came right after EXISTS
            # may be read before the reply to EXISTS.
            if not (reply or self._invalidated_meanwhile):
                self._idle_until = monotonic() + MAX_IDLE_SECONDS
        elif reply:
            name, element = reply
            queue = self._queue_of(name.decode())
            self._queue_cycle.rotate(queue)
            raw = self._parse(element, self._fetch_tag, queue in self._no_ack_queues)
            if raw is not None:
                self.connection._deliver(raw, queue)
                return True
        elif self._tracking_unavailable:
            self._idle_until = monotonic() + UNTRACKED_POLL_SECONDS
            self.connection.cycle.wake_soon()
        elif lists := self._queue_keys():
            self._send_command("exists", "EXISTS", *lists)
        raise Empty

    def _read_reply(self) -> Any:
        connection = self.client.connection
        try:
            return connection.read_response()
        except self.connection_errors:
            connection.disconnect()
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _parse(self, element: bytes, tag: str, no_ack: bool) -> JsonObject | None:
        """The message in a list's element; None when it cannot be read and was kept as a dead letter."""
        try:
            return parse_element(element, tag, self.decode_body)
        except MalformedError as error:
            if keep_rejected(self, rejected_element(element, str(error))) and not no_ack:
                self.run_or_defer(lambda unacked: unacked.remove(tag))
            return None

    def stop_fetching(self) -> None:
        """Requeue the message that a fetch in flight returns: a closing worker delivers nothing."""
        if not self._in_poll:
            return
        try:
            reply = self._read_reply()
        except (*self.connection_errors, ResponseError):
            return
        if self._sent == "fetch" and reply:
            tag = self._fetch_tag
            self.run_or_defer(lambda unacked: unacked.requeue([tag]))

    # -- invalidations -------------------------------------------------------------------------------------

    def _start_listener(self, connection: Any) -> None:
        if self._listener is not None:
            self._listener.close()
        try:
            self._listener = InvalidationListener(self.async_pool, connection)
        except ResponseError as error:
            log.warning("Redis rejects key tracking, polling instead", error_type=type(error).__name__)
            self._tracking_unavailable = True
            return
        self.connection.cycle.add_listener(self, self._listener)

    def _on_invalidation(self) -> None:
        self._idle_until = 0.0
        self._invalidated_meanwhile = True
        if self._listener is not None:
            try:
                self._listener.drain()
            except self.connection_errors:
                self._listener.close()
                raise
        raise Empty

    # -- connections ---------------------------------------------------------------------------------------

    def _disconnect_pools(self) -> None:
        self.__dict__.pop("unacked", None)
        super()._disconnect_pools()

    def close(self) -> None:
        """Close the channel and requeue its unacknowledged messages."""
        if not self.closed:
            self.stop_fetching()
            if self._qos is not None:
                # Kombu would do this when the connections are closed already.
                self._qos.restore_unacked()
            if self.pending_acks:
                with suppress(*self.connection_errors, ResponseError):
                    self.pending_acks.flush(self.unacked)
        super().close()


class Transport(redis_broker.Transport):
    """Differs from kombu's in fetching and acknowledging; publishing and fan-out (events) are the same."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()
        self.redelivers_from = 0.0

    def delay_redelivery(self, seconds: float) -> None:
        """Redeliver nothing for so long, as the workers that hold the messages may be connecting again."""
        self.redelivers_from = monotonic() + seconds

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let the poller wake the worker's event loop, and register the connections as kombu does."""
        self.cycle.loop = loop
        super().register_with_event_loop(connection, loop)
