"""The transport for `redis://`: takes messages so that none is lost, keeps those that cannot be read."""

from contextlib import suppress
from functools import cached_property
from queue import Empty
from time import monotonic
from typing import Any, Literal
from uuid import uuid4

import structlog
from kombu.transport import redis
from redis.exceptions import ResponseError

from worker.broker.delivery import DUE_KEY, HELD_KEY, Debt, Debts, QoS, Unacked, debts_of
from worker.broker.rejections import keep, refused_element
from worker.broker.validation import MalformedError, open_element
from worker.lua import source_of

CHANNEL = "__redis__:invalidate"


class Bell:
    """A connection that becomes readable when a key changes that a watched connection has looked at."""

    def __init__(self, pool: Any, watched: Any) -> None:
        self.connection = pool.get_connection()
        self._socket = watched._sock
        id_ = self._ask(self.connection, "CLIENT", "ID")
        self._ask(self.connection, "SUBSCRIBE", CHANNEL)
        self._ask(watched, "CLIENT", "TRACKING", "ON", "REDIRECT", id_)

    def hangs_on(self, watched: Any) -> bool:
        """Whether the watched connection is still the one that Redis knows."""
        return self._socket is watched._sock and self.connection._sock is not None

    def silence(self) -> None:
        """Read what came; what it says does not matter. Raises when the connection is gone."""
        self.connection.read_response()
        while self.connection.can_read(timeout=0):
            self.connection.read_response()

    def remove(self) -> None:
        """Close the connection."""
        self.connection.disconnect()

    @staticmethod
    def _ask(connection: Any, *command: Any) -> Any:
        connection.send_command(*command)
        return connection.read_response()


LONGEST_REST = 1.0
"""Seconds. Empty queues are looked at so often although no bell rang, should one have been lost."""

REST_WITHOUT_BELL = 0.05
"""Seconds between two looks at empty queues on a Redis that refuses key tracking."""

BELL = "BELL"


class Poller(redis.MultiChannelPoller):
    """Reads a bell at once, also when the worker wants no more messages: else it would spin on it."""

    loop: Any = None

    def add_bell(self, channel: Any, bell: Bell) -> None:
        """Poll the bell's connection."""
        self._register(channel, bell, BELL)

    def rest_shortly(self) -> None:
        """Make the event loop come round soon."""
        if self.loop is not None:
            self.loop.call_later(REST_WITHOUT_BELL, lambda: None)

    def on_readable(self, fileno: int) -> Any:
        """An event on one of our connections."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == BELL:
            return channel.handlers[BELL]()
        return super().on_readable(fileno)

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """One round without an event loop; never longer than until the next look."""
        rest = LONGEST_REST
        if any(channel.rests_shortly for channel in self._channels):
            rest = REST_WITHOUT_BELL
        return super().get(callback, timeout=rest if timeout is None else min(timeout, rest))


log = structlog.get_logger(__name__)

FETCH = source_of("worker.broker", "fetch")


class Channel(redis.Channel):
    """A channel of `worker.broker.transport`."""

    QoS = QoS
    unacked_key = HELD_KEY
    unacked_index_key = DUE_KEY

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._bell: Bell | None = None
        self._without_bell = False
        self._rest_until = 0.0
        self._rang_meanwhile = False
        self._asked: Literal["fetch", "look"] = "fetch"
        self._tag = ""
        self._unacknowledged_queues: set[str] = set()
        super().__init__(*args, **kwargs)
        self.handlers[BELL] = self._on_bell
        broker = self.connection.client
        self.debts: Debts = debts_of(broker.hostname, broker.port, broker.virtual_host)

    # -- what is held --------------------------------------------------------------------------------------

    @cached_property
    def unacked(self) -> Unacked:
        """On a connection of the pool: acknowledging is safe from any thread and beside a fetch."""
        return Unacked(self._create_client(), self.unacked_key, self.unacked_index_key)

    def tell(self, debt: Debt) -> None:
        """Tell Redis now, or when it is back."""
        if not self.closed:
            try:
                debt(self.unacked)
                return
            except (*self.connection_errors, ResponseError) as error:
                log.warning("broker away, told later", error_type=type(error).__name__)
        self.debts.add(debt)

    def sweep(self) -> None:
        """Tell Redis what is owed, and give back what nobody acknowledged in time."""
        self.debts.pay(self.unacked)
        if given := self.unacked.give_back_overdue():
            log.info("messages delivered again", count=given)

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        self.tell(lambda unacked: unacked.give_back([message.delivery_tag], last=leftmost))

    # -- fetching ------------------------------------------------------------------------------------------

    @property
    def rests_shortly(self) -> bool:
        """Whether queues are looked at often, for want of a bell."""
        return self._without_bell

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Consume from `queue`; messages of a `no_ack` consumer are never held."""
        (self._unacknowledged_queues.add if no_ack else self._unacknowledged_queues.discard)(queue)
        self._rest_until = 0.0
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Any:
        """One message at once, or None."""
        lists = [self._q_for_pri(queue, priority) for priority in self.priority_steps]
        client = self._create_client()
        # A tag each: one that can neither be read nor kept stays held under its own.
        while reply := client.eval(*self._fetch(tag := uuid4().hex, lists, {queue} if no_ack else set())):
            raw = self._open(reply[1], tag, no_ack)
            if raw is not None:
                message = self.Message(raw, channel=self)
                if not no_ack:
                    self.qos.append(message, tag)
                return message
        return None

    def _fetch(self, tag: str, lists: list[str], unacknowledged: set[str]) -> list[Any]:
        held = ["0" if self._queue_of(name) in unacknowledged else "1" for name in lists]
        keys = [self.unacked_key, self.unacked_index_key, *lists]
        return [FETCH, len(keys), *keys, tag, self.visibility_timeout, *held]

    def _queue_of(self, name: str) -> str:
        return name.rsplit(self.sep, 1)[0]

    def _lists(self) -> list[str]:
        queues = self._queue_cycle.consume(len(self.active_queues))
        return [self._q_for_pri(queue, priority) for priority in self.priority_steps for queue in queues]

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002 - kombu's signature
        if monotonic() < self._rest_until:
            return
        lists = self._lists()
        if not lists:
            return
        connection = self.client.connection
        if not self._without_bell and (self._bell is None or not self._bell.hangs_on(connection)):
            self._hang_bell(connection)
        self._tag = uuid4().hex
        self._ask("fetch", "EVAL", *self._fetch(self._tag, lists, self._unacknowledged_queues))

    def _ask(self, what: Literal["fetch", "look"], *command: Any) -> None:
        self._asked = what
        self._rang_meanwhile = False
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self.client.connection.send_command(*command)

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ARG002 - kombu's signature
        reply = self._answer()
        if self._asked == "look":
            # The bell has a connection of its own: its news of a message that came right after the look may
            # be read before the look's answer.
            if not (reply or self._rang_meanwhile):
                self._rest_until = monotonic() + LONGEST_REST
        elif reply:
            name, element = reply
            queue = self._queue_of(name.decode())
            self._queue_cycle.rotate(queue)
            raw = self._open(element, self._tag, queue in self._unacknowledged_queues)
            if raw is not None:
                self.connection._deliver(raw, queue)
                return True
        elif self._without_bell:
            self._rest_until = monotonic() + REST_WITHOUT_BELL
            self.connection.cycle.rest_shortly()
        elif lists := self._lists():
            self._ask("look", "EXISTS", *lists)
        raise Empty

    def _answer(self) -> Any:
        connection = self.client.connection
        try:
            return connection.read_response()
        except self.connection_errors:
            connection.disconnect()
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _open(self, element: bytes, tag: str, no_ack: bool) -> dict[str, Any] | None:
        """The message in a list's element; None when it cannot be read and was kept as a dead letter."""
        try:
            return open_element(element, tag, self.decode_body)
        except MalformedError as error:
            if keep(self, refused_element(element, str(error))) and not no_ack:
                self.tell(lambda unacked: unacked.remove(tag))
            return None

    def stop_fetching(self) -> None:
        """Give back the message that a fetch in flight brings: a closing worker delivers nothing."""
        if not self._in_poll:
            return
        try:
            reply = self._answer()
        except (*self.connection_errors, ResponseError):
            return
        if self._asked == "fetch" and reply:
            tag = self._tag
            self.tell(lambda unacked: unacked.give_back([tag]))

    # -- the bell ------------------------------------------------------------------------------------------

    def _hang_bell(self, connection: Any) -> None:
        if self._bell is not None:
            self._bell.remove()
        try:
            self._bell = Bell(self.async_pool, connection)
        except ResponseError as error:
            log.warning("Redis refuses key tracking, polling instead", error_type=type(error).__name__)
            self._without_bell = True
            return
        self.connection.cycle.add_bell(self, self._bell)

    def _on_bell(self) -> None:
        self._rest_until = 0.0
        self._rang_meanwhile = True
        if self._bell is not None:
            try:
                self._bell.silence()
            except self.connection_errors:
                self._bell.remove()
                raise
        raise Empty

    # -- connections ---------------------------------------------------------------------------------------

    def _connparams(self, asynchronous: bool = False) -> Any:
        # The older protocol: there a bell's news are messages to a subscription. redis-py's default changes.
        return {**super()._connparams(asynchronous=asynchronous), "protocol": 2}

    def _disconnect_pools(self) -> None:
        self.__dict__.pop("unacked", None)
        super()._disconnect_pools()

    def close(self) -> None:
        """Close; what is held goes back."""
        if not self.closed:
            self.stop_fetching()
            if self._qos is not None:
                self._qos.restore_unacked()  # kombu would, when the connections are closed already
            if self.debts:
                with suppress(*self.connection_errors, ResponseError):
                    self.debts.pay(self.unacked)
        super().close()


class Transport(redis.Transport):
    """Publishing, fan-out (`inspect`, events) and everything else is kombu's."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Join the worker's event loop."""
        self.cycle.loop = loop
        super().register_with_event_loop(connection, loop)
