"""Celery's tracer, so that a message over which it stumbles ends there.

What the tracer itself raises, not the task, is lost in a pool of threads: nobody acknowledges the message,
and its slot is gone for good. As many such messages as there are slots stop a worker.
"""

import time
from collections.abc import Callable
from typing import Any

import structlog
from billiard.einfo import ExceptionInfo
from celery import bootsteps, signals
from celery.app.trace import TraceInfo, trace_ok_t
from celery.exceptions import Reject, WorkerShutdown
from celery.states import FAILURE
from celery.utils.log import worker_logger
from celery.worker import consumer, state
from celery.worker.state import maybe_shutdown
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps
from vine import ppartial, promise  # type: ignore[import-untyped]

from worker.broker import validation
from worker.broker.config import ClockOffError, check_clock
from worker.broker.rejections import RefusedMessage, keep, refused_message
from worker.broker.transport import Channel
from worker.broker.validation import FOLLOWING, limit_unpacking

Trace = Callable[..., Any]


def unfailing(name: str, trace: Trace) -> Trace:
    """`trace` of the task `name`; a message that makes it raise is kept with the reason."""

    def trace_or_keep(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        try:
            return trace(uuid, args, kwargs, request)
        except Exception as error:
            reason = f"cannot be run: {type(error).__name__}"
        body = dumps([args, kwargs, {part: (request or {}).get(part) for part in FOLLOWING}])
        kept = keep(None, RefusedMessage(name, body, reason, uuid, kwargs))
        return _failed(RuntimeError(reason) if kept else Reject(reason, requeue=True))

    return trace_or_keep


def _failed(error: Exception) -> Any:
    """What Celery takes for the outcome of a task that raised `error`."""
    try:
        raise error
    except Exception:
        return trace_ok_t(ExceptionInfo(), TraceInfo(FAILURE, error), 0.0, None)


MOMENT = 0.02
"""Seconds between a thread's taking a task and its saying so."""


def in_the_pool(pool: Any, *, last: bool) -> set[str]:
    """Delivery tags of the messages whose tasks run or will run whatever happens now.

    With `last`, no task that a pool of threads has queued begins any more, and these are not counted.
    """
    requests = set(state.reserved_requests) | set(state.active_requests)
    executor = getattr(pool, "executor", None)
    if last and executor is not None:
        executor.shutdown(wait=False, cancel_futures=True)
        time.sleep(MOMENT)
        requests = set(state.active_requests)
    # A request that was given to the pool has an answer to come; others wait for a process or for their time.
    given = (r for r in requests if r in state.active_requests or r._apply_result is not None)
    return {request.message.delivery_tag for request in given}


def waiting_for_their_time() -> list[str]:
    """Delivery tags of the messages with a countdown or ETA that this process keeps in memory."""
    return [request.message.delivery_tag for request in tuple(state.scheduled_requests)]


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
                validation.check(message)
                handle(message)
            except validation.NotATaskError as error:
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
        if (channel := self._channel()) is not None and (tags := waiting_for_their_time()):
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
        given = channel.qos.hand_back(keep=in_the_pool(self.pool, last=last))
        log.info("messages handed back", count=given, stopping=last)
        if not last:
            channel.qos.forget()
