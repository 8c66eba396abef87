"""Celery's consumer, so that it survives bad messages and lost brokers, lets go of what it does not run."""

from typing import Any

import structlog
from celery import bootsteps, signals
from celery.exceptions import WorkerShutdown
from celery.utils.log import worker_logger
from celery.worker import consumer
from celery.worker.state import maybe_shutdown
from kombu.exceptions import OperationalError
from vine import ppartial, promise  # type: ignore[import-untyped]

from worker.broker import pool_work, task_message
from worker.broker.channel import Channel
from worker.broker.clock import ClockOffError, check_clock
from worker.broker.refusals import keep, refused_message
from worker.broker.tracing import unfailing
from worker.broker.unpacking import limit_unpacking

log = structlog.get_logger(__name__)

EX_CONFIG = 78

STOPPING = {bootsteps.CLOSE, bootsteps.TERMINATE}


class Consumer(consumer.Consumer):
    """Named by the setting `worker_consumer`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        limit_unpacking()
        super().__init__(*args, **kwargs)

    # -- bad messages: kept with the reason, never logged, never in the way of those behind them -----------

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Neither protocol of Celery."""
        self._refuse(message, "not a task message")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """No such task here. Celery would log the body and drop it."""
        self._refuse(message, "unknown task")
        headers = message.headers or {}
        signals.task_unknown.send(
            sender=self, message=message, exc=exc, name=headers.get("task"), id=headers.get("id")
        )

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """A task message with a mistake that only Celery finds; its text may show values."""
        self._refuse(message, f"invalid task message: {type(exc).__name__}", exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """The body is not in a format that is accepted."""
        self._refuse(message, f"body cannot be decoded: {type(exc).__name__}", exc)

    def create_task_handler(self, promise: Any = promise) -> Any:
        """What is called for every message; nothing that a message does escapes it."""
        handle = super().create_task_handler(promise)
        # A KeyError counts as a lost connection for kombu; here it is a message without something.
        broker_errors = (
            *(error for error in self.connection_errors if error is not KeyError),
            OperationalError,
        )

        def on_task_received(message: Any) -> None:
            try:
                task_message.check(message)
                handle(message)
            except task_message.NotATaskError as error:
                self._refuse(message, str(error), error)
            except broker_errors:
                raise
            except Exception as error:
                self._refuse(message, f"cannot be handled: {type(error).__name__}", error)

        return on_task_received

    def update_strategies(self) -> None:
        """Make the tracers of all tasks."""
        super().update_strategies()
        for name, task in self.app.tasks.items():
            task.__trace__ = unfailing(name, task.__trace__)

    def _refuse(self, message: Any, reason: str, exc: Exception | None = None) -> None:
        if message.acknowledged:
            return  # its task ran; the error came after
        if keep(self, refused_message(message, reason)):
            message.reject_log_error(worker_logger, self.connection_errors)
            signals.task_rejected.send(sender=self, message=message, exc=exc)
        elif isinstance(message.channel, Channel):
            message.channel.qos.leave(message.delivery_tag)

    # -- lost brokers --------------------------------------------------------------------------------------

    def ensure_connected(self, conn: Any) -> Any:
        """Connect; tries every two seconds at least, where stock waits up to 30 s after a long outage."""

        def report(error: Exception, _interval: float) -> None:
            log.error("broker cannot be reached", broker=conn.as_uri(), error_type=type(error).__name__)

        conn.ensure_connection(
            report,
            self.app.conf.broker_connection_max_retries,
            interval_start=0.5,
            interval_step=0.5,
            interval_max=2.0,
            callback=maybe_shutdown,
        )
        self.first_connection_attempt = False
        self.broker_connection_retry_attempt = 0
        return conn

    def connect(self) -> Any:
        """Connect and, on Redis, compare clocks: at start a clock that is far off ends the worker."""
        conn = super().connect()
        channel = conn.default_channel
        if isinstance(channel, Channel):
            try:
                check_clock(channel.unacked.client.time)
            except ClockOffError as error:
                log.critical(str(error))
                if self.restart_count == 0:
                    raise WorkerShutdown(EX_CONFIG) from None
        return conn

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Keep what the pool works on, where stock gives it back at once and so runs it twice."""
        self._hand_back(last=False)
        super().on_connection_error_after_connected(exc)

    # -- letting go ----------------------------------------------------------------------------------------

    def register_with_event_loop(self, hub: Any) -> None:
        """Join the event loop."""
        super().register_with_event_loop(hub)
        channel = self.task_consumer.channel
        if isinstance(channel, Channel):
            hub.call_repeatedly(max(0.5, channel.visibility_timeout / 4), self._renew_waiting)

    def _renew_waiting(self) -> None:
        """A countdown may exceed the visibility timeout: its message is not delivered to others meanwhile.

        Stock does deliver it, each copy waits in memory too, and one task became 255 runs.
        """
        if (channel := self._channel()) is not None and (tags := pool_work.waiting_for_their_time()):
            try:
                channel.unacked.renew(tags, channel.visibility_timeout)
            except self.connection_errors as error:
                log.warning("waiting messages not renewed", error_type=type(error).__name__)

    def on_close(self) -> None:
        """The worker stops (or the connection is gone): others get at once what the pool has not begun.

        Stock gives it back when the last running task has ended.
        """
        if self.connection is not None:
            self._hand_back(last=True)
        super().on_close()

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge; in a stopping worker at once, as its event loop comes round only at the very end."""
        if self.hub is None or self.blueprint.state not in STOPPING:
            return super().call_soon_ack(p, *args, **kwargs)
        p = ppartial(p, *args, **kwargs)
        p()
        return p

    def _channel(self) -> Channel | None:
        channel = self.task_consumer.channel if self.task_consumer else None
        return channel if isinstance(channel, Channel) else None

    def _hand_back(self, *, last: bool) -> None:
        channel = self._channel()
        if channel is None or channel.closed:
            return
        if last:
            channel.stop_fetching()
        given = channel.qos.hand_back(keep=pool_work.in_the_pool(self.pool, last=last))
        log.info("messages handed back", count=given, stopping=last)
        if not last:
            channel.qos.forget()
