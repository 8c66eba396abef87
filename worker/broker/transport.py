"""The transport for `redis://`: fetches messages so that none is lost, keeps those that cannot be read."""

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha1
from queue import Empty
from time import monotonic
from typing import Any, ClassVar, Literal
from uuid import uuid4

import structlog
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from redis.exceptions import NoScriptError, ResponseError

from shared import redis_broker
from shared.messages import JsonObject
from worker.broker.delivery import AckCommand, PendingAcks, QoS, pending_acks_of
from worker.broker.keys import (
    delayed_key,
    earlier_key,
    redelivering_key,
    redelivery_key,
    tokens_key,
    unacked_key,
    wake_key,
    watcher_key,
)
from worker.broker.polling import CACHING, INVALIDATION, InvalidationListener, Poller
from worker.broker.publishing import PublishingChannel
from worker.broker.rejections import keep_rejected, rejected_element
from worker.broker.validation import MalformedError, parse_element
from worker.lua import source_of

log = structlog.get_logger(__name__)

UNTRACKED_POLL_SECONDS = 0.05
"""Time between two reads of empty queues on a Redis that rejects key tracking."""

WATCH_MILLISECONDS = 2000
"""A watcher that has not fetched for so long is dead, and its queues are watched by another one."""

RENEW_SECONDS = 0.75
"""Time between two fetches of a watcher without news."""

WAIT_SECONDS = (1.5, 2.5)
"""A consumer that waits for a token looks after a time between these whether there still is a watcher."""

FOLLOW_UP_SECONDS = 1.0
"""For so long what Redis has answered says what to ask next; after that the consumer fetches."""

FETCH_SCRIPT = source_of("worker.broker", "fetch")
FETCH_SHA = sha1(FETCH_SCRIPT.encode(), usedforsecurity=False).hexdigest()


Step = Literal["fetch", "watch", "wait", "check"]
"""What a consumer asks Redis: a message; news when its queues are no longer empty; a token of the consumer
that has such news; whether there is such a consumer."""


class Channel(PublishingChannel):
    """Fetches messages with a script, and of several idle consumers wakes one.

    Where stock kombu waits in BRPOP, this channel runs `fetch`. When all lists are empty, the script makes
    one consumer the watcher, which sends EXISTS for their keys, so that Redis tracks them and reports when
    one of them changes. The others wait in BLPOP for a token.
    """

    QoS = QoS
    # With version 2 of Redis's protocol invalidations are messages to a subscription. It is set here because
    # redis-py's default changes, and a URL may ask for another.
    needed_options: ClassVar[Mapping[str, Any]] = {"protocol": 2}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._listener: InvalidationListener | None = None
        self._tracking_unavailable = False
        self._consumer = uuid4().hex
        self._group: list[str] | None = None
        self._watches = False
        self.idle_until = 0.0
        """Moment of the monotonic clock before which nothing is sent, unless an invalidation arrives."""
        self._invalidated_meanwhile = False
        self._sent: Step = "fetch"
        self._next: Step = "fetch"
        self._answered_at = self._earliest_due = self._fetched_at = 0.0
        self._has_overdue = False
        self._fetch_tag = ""
        self._no_ack_queues: set[str] = set()
        super().__init__(*args, **kwargs)
        self.handlers[INVALIDATION] = self._on_invalidation
        broker = self.connection.client
        self.pending_acks: PendingAcks = pending_acks_of(broker.hostname, broker.port, broker.virtual_host)

    # -- unacknowledged messages ---------------------------------------------------------------------------

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

    def _redeliver_overdue(self) -> None:
        """Run the pending commands, then requeue what nobody acknowledged in time."""
        self._has_overdue = False
        if monotonic() < self.connection.redelivers_from:
            return
        with suppress(*self.connection_errors, ResponseError):
            self.pending_acks.flush(self.unacked)
            if requeued := self.unacked.requeue_overdue():
                log.info("overdue messages requeued", count=requeued)

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        self.run_or_defer(lambda unacked: unacked.requeue([message.delivery_tag], last=leftmost))

    def delay_until(self, tag: str, due: float) -> bool:
        """Keep a fetched message until that time on Redis's clock; returns whether that is still to come.

        A message that Redis cannot keep now, because its memory is full, is redelivered in time.
        """
        try:
            return self.unacked.delay_until(tag, due)
        except ResponseError as error:
            log.warning("message not delayed", error_type=type(error).__name__)
            return True

    # -- fetching ------------------------------------------------------------------------------------------

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Consume from `queue`; messages of a `no_ack` consumer are never recorded as unacknowledged."""
        (self._no_ack_queues.add if no_ack else self._no_ack_queues.discard)(queue)
        self.idle_until, self._next = 0.0, "fetch"
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Any:
        """One message without waiting, or None."""
        no_ack_queues = {queue} if no_ack else set()
        fetch = self._unprefixed_client().register_script(FETCH_SCRIPT)
        # A tag for each fetch: a message that can neither be read nor kept stays unacknowledged under it.
        while True:
            keys, arguments = self._fetch_arguments(tag := uuid4().hex, [queue], no_ack_queues, consumer="")
            _name, element, *_state = fetch(keys, arguments)
            if element is None:
                return None
            raw = self._parse(element, tag, no_ack)
            if raw is not None:
                message = self.Message(raw, channel=self)
                if not no_ack:
                    self.qos.append(message, tag)
                return message

    def _fetch_arguments(
        self, tag: str, queues: list[str], no_ack_queues: set[str], *, consumer: str
    ) -> tuple[list[str], list[Any]]:
        lists = self._list_keys(queues)
        acknowledged = ["0" if self._queue_of(name) in no_ack_queues else "1" for name in lists]
        of_broker = [
            unacked_key(),
            redelivery_key(),
            redelivering_key(),
            watcher_key(queues),
            tokens_key(queues),
        ]
        keys = [self.global_keyprefix + key for key in [*of_broker, *map(delayed_key, queues)]]
        keeps_watch = "1" if consumer and self.qos.is_free(queues) else "0"
        options = [tag, self.visibility_timeout, consumer, WATCH_MILLISECONDS, keeps_watch, len(queues)]
        return [*keys, *lists], [*options, *acknowledged]

    def _list_keys(self, queues: list[str]) -> list[str]:
        return [self._list_key(queue, priority) for priority in self.priority_steps for queue in queues]

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002 - kombu's signature
        now = monotonic()
        if now < self.idle_until:
            return
        if self._has_overdue:
            self._redeliver_overdue()
        queues = self._fetchable_queues()
        if not queues:
            return
        step = self._next if now < self._answered_at + FOLLOW_UP_SECONDS else "fetch"
        if step == "watch" and not self._track():
            self._rest(UNTRACKED_POLL_SECONDS)
        elif step == "watch":
            earlier = ("GET", self.global_keyprefix + earlier_key())
            self._send(step, CACHING, earlier, CACHING, ("EXISTS", *self._list_keys(queues)))
        elif step == "wait":
            keys = [self.global_keyprefix + key for key in (wake_key(self._consumer), tokens_key(queues))]
            self._send(step, ("BLPOP", *keys, round(random.uniform(*WAIT_SECONDS), 3)))
        elif step == "check":
            # Only now, because a watcher that gets busy often watches again at once.
            if self._listener is not None:
                self._listener.untrack(self.client.connection)
            self._send(step, ("EXISTS", self.global_keyprefix + watcher_key(queues)))
        else:
            self._fetch_tag = uuid4().hex
            keys, arguments = self._fetch_arguments(
                self._fetch_tag, queues, self._no_ack_queues, consumer=self._consumer
            )
            self._group = keys[3:5]
            self._send("fetch", ("EVALSHA", FETCH_SHA, len(keys), *keys, *arguments))

    def _fetchable_queues(self) -> list[str]:
        """The consumer's queues of which it does not yet hold as many messages as it may.

        When they are others than before, another consumer watches those.
        """
        queues = [
            queue
            for queue in self._queue_cycle.consume(len(self.active_queues))
            if not self.qos.is_full(queue)
        ]
        if self._group is not None and self._group[0] != self.global_keyprefix + watcher_key(queues):
            if self._watches:
                self.release_watch()
            self._next = "fetch"
        return queues

    def _send(self, step: Step, *commands: Sequence[Any]) -> None:
        self._sent = step
        self._invalidated_meanwhile = False
        self._in_poll = connection = self.client.connection
        self._brpop_sent_at = monotonic()
        connection.send_packed_command(connection.pack_commands(commands))

    def fetch_soon(self) -> None:
        """Fetch again: a queue that could not be fetched from now can."""
        self.idle_until, self._next = 0.0, "fetch"
        if self._in_poll and self._sent == "wait" and not self.closed:
            # Otherwise the consumer fetches when its wait has ended.
            with suppress(*self.connection_errors, ResponseError):
                self.unacked.wake(self.global_keyprefix + wake_key(self._consumer))

    def _rest(self, seconds: float) -> None:
        """Send nothing for so long, unless an invalidation arrives; then fetch."""
        self._next = "fetch"
        self.idle_until = monotonic() + seconds
        self.connection.cycle.wake_at(self.idle_until)

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ARG002 - kombu's signature
        sent, self._next = self._sent, "fetch"
        try:
            reply = self._read_reply()
        except NoScriptError:
            self.unacked.client.script_load(FETCH_SCRIPT)
            raise Empty from None
        self._answered_at = monotonic()
        if sent == "fetch":
            return self._handle_fetched(*reply)
        if sent == "wait" and not reply:
            self._next = "check"
        elif sent == "wait" and not self.qos.can_consume():
            self.release_watch()  # The token is for another one.
        elif sent == "check" and reply:
            self._next = "wait"
        if sent == "watch":
            earlier, messages = reply
            has_earlier = earlier is not None and float(earlier) > self._fetched_at
            # Invalidations have a connection of their own: the one for a message that came right after EXISTS
            # may be read before the reply to EXISTS.
            if not (messages or has_earlier or self._invalidated_meanwhile):
                self._rest(min(RENEW_SECONDS, max(0.0, self._earliest_due - monotonic())))
        raise Empty

    def _handle_fetched(
        self,
        name: bytes,
        element: bytes,
        more: int,
        watches: int,
        next_due: bytes,
        overdue: int,
        fetched_at: bytes,
    ) -> bool:
        self._fetched_at = float(fetched_at)
        self._earliest_due = monotonic() + (RENEW_SECONDS if next_due is None else float(next_due))
        self._has_overdue = bool(overdue)
        self._watches = bool(watches)
        self._next = "fetch" if more else "watch" if watches else "wait"
        if element is not None:
            queue = self._queue_of(name.decode())
            self._queue_cycle.rotate(queue)
            raw = self._parse(element, self._fetch_tag, queue in self._no_ack_queues)
            if raw is not None:
                if queue not in self._no_ack_queues:
                    self.qos.hold(self._fetch_tag, queue)
                self.connection._deliver(raw, queue)
                return True
        raise Empty

    def _read_reply(self) -> Any:
        connection = self.client.connection
        try:
            if self._sent == "watch":
                return [connection.read_response() for _ in range(4)][1::2]
            return connection.read_response()
        except self.connection_errors:
            connection.disconnect()
            raise
        except ResponseError:
            if self._sent == "watch":  # The other replies are not read.
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

    def _handle_message(self, client: Any, response: Any) -> Any:
        """Read what comes on a channel, such as that of Celery's commands.

        What is no message is left out: kombu would pass the error on to Celery, which ends the worker.
        """
        received = super()._handle_message(client, response)
        if received["data"] and bytes_to_str(received["type"]).endswith("message"):
            try:
                envelope = parse_element(received["data"], uuid4().hex, self.decode_body)
                received["data"] = dumps(envelope)
            except MalformedError as error:
                log.warning("message of a channel left out", reason=str(error))
                received["data"] = None
        return received

    def stop_fetching(self) -> None:
        """Requeue the message that a fetch in flight returns: a closing worker delivers nothing.

        Another consumer watches the queues from now on.
        """
        if self._in_poll and self._sent == "wait":
            self.client.connection.disconnect()
            self._in_poll = None
        elif self._in_poll:
            with suppress(*self.connection_errors, ResponseError):
                reply = self._read_reply()
                if self._sent == "fetch" and reply[1] is not None:
                    tag = self._fetch_tag
                    self.run_or_defer(lambda unacked: unacked.requeue([tag]))
        self.release_watch()
        self._group = None

    def release_watch(self) -> None:
        """If this consumer watches its queues, let the one do it that has waited longest."""
        if self._group is not None and not self.closed:
            with suppress(*self.connection_errors, ResponseError):
                self.unacked.release_watch(self._group, self._consumer)
            self._watches, self._next = False, "wait"

    # -- watching ------------------------------------------------------------------------------------------

    def _track(self) -> bool:
        """Let Redis report the changes of all keys that are read from now on; returns whether it does."""
        if self._tracking_unavailable:
            return False
        try:
            if self._listener is None or not self._listener.is_connected:
                if self._listener is not None:
                    self._listener.close()
                self._listener = InvalidationListener(self.async_pool)
                self.connection.cycle.add_listener(self, self._listener)
            self._listener.track(self.client.connection)
        except ResponseError as error:
            log.warning("Redis rejects key tracking, polling instead", error_type=type(error).__name__)
            self._tracking_unavailable = True
            return False
        return True

    def _on_invalidation(self) -> None:
        self.idle_until = 0.0
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

    def on_readable(self, fileno: int) -> None:
        """Handle an event; that there is no message yet is no error to an event loop."""
        with suppress(Empty):
            super().on_readable(fileno)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let the poller wake the worker's event loop, and register the connections as kombu does."""
        self.cycle.loop = loop
        super().register_with_event_loop(connection, loop)
