"""Takes messages from Redis so that none is lost, and keeps those that cannot be read.

Stock kombu pops with BRPOP and writes the message down as unacknowledged in a second step: 28 kills under
load lost 9 of 12,000. Here one script does both. It does not block, so an empty answer is followed by a
look that hangs the bell (see `worker.broker.bell`); until it rings the connection rests. Looks and fetches
use kombu's BRPOP slot: its connection, its place in the poller, its pause when the worker wants no more,
its check for dead connections.
"""

from contextlib import suppress
from functools import cached_property
from importlib import resources
from queue import Empty
from time import monotonic
from typing import Any, Literal
from uuid import uuid4

import structlog
from kombu.transport import redis
from redis.exceptions import ResponseError

from worker.broker.bell import Bell
from worker.broker.debts import Debt, Debts, debts_of
from worker.broker.envelope import MalformedError, open_element
from worker.broker.poller import BELL, LONGEST_REST, REST_WITHOUT_BELL
from worker.broker.qos import QoS
from worker.broker.refusals import keep, refused_element
from worker.broker.unacked import DUE_KEY, HELD_KEY, Unacked

log = structlog.get_logger(__name__)

FETCH = (resources.files("worker.broker") / "lua" / "fetch.lua").read_text(encoding="utf-8")


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
