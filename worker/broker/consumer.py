"""Celery's consumer and tracer, so that neither a bad message nor a lost broker stops a worker."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import structlog
from billiard.einfo import ExceptionInfo
from celery import Celery, bootsteps, current_app, signals
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
from worker.broker.config import EX_CONFIG
from worker.broker.rejections import (
    UNKNOWN_STEP,
    RejectedMessage,
    keep_rejected,
    may_be_of_newer_worker,
    rejected_message,
)
from worker.broker.transport import Channel
from worker.broker.validation import EMBED_KEYS, HONOURED_ETA, limit_decompression
from worker.redis_needs import RedisClusterError, reject_cluster
from worker.runs.publisher import STEP_HEADER

log = structlog.get_logger(__name__)

Trace = Callable[..., Any]


def guarded_tracer(name: str, trace: Trace) -> Trace:
    """Wrap the tracer of task `name`: a message that makes it raise is kept with the reason.

    The task reads the ETA that its message was published with, also where Redis has delayed it until then.

    What the tracer itself raises, as opposed to the task, is lost in a pool of threads: nobody acknowledges
    the message and its slot is never freed. As many such messages as there are slots stop a worker.
    """

    def trace_or_keep(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        if request and request.get(HONOURED_ETA) is not None:
            request = {**request, "eta": request[HONOURED_ETA]}
        try:
            return trace(uuid, args, kwargs, request)
        except Exception as error:
            reason = f"cannot be run: {type(error).__name__}"
        body = dumps([args, kwargs, {key: (request or {}).get(key) for key in EMBED_KEYS}])
        kept = keep_rejected(None, RejectedMessage(name, body, reason, uuid, kwargs))
        return _failure(RuntimeError(reason) if kept else Reject(reason, requeue=True))

    return trace_or_keep


def _guard_tracers(app: Celery) -> None:
    for name, task in app.tasks.items():
        task.__trace__ = guarded_tracer(name, task.__trace__)


@signals.worker_process_init.connect(weak=False)
def _guard_tracers_of_child(**_: Any) -> None:
    """A process of a prefork pool has made its tracers anew."""
    _guard_tracers(current_app._get_current_object())


def _failure(error: Exception) -> Any:
    """The tracer's result for a task that raised `error`."""
    try:
        raise error
    except Exception:
        return trace_ok_t(ExceptionInfo(), TraceInfo(FAILURE, error), 0.0, None)


THREAD_START_SECONDS = 0.02
"""Time between a thread's taking a task and the request's being marked as active."""


def in_flight(pool: Any, *, stopping: bool) -> set[str]:
    """Delivery tags of the messages whose tasks run, or can no longer be kept from running.

    With `stopping`, the tasks that a pool of threads has queued are cancelled, and are not in flight then.
    """
    requests = set(state.reserved_requests) | set(state.active_requests)
    executor = getattr(pool, "executor", None)
    if stopping and executor is not None:
        executor.shutdown(wait=False, cancel_futures=True)
        time.sleep(THREAD_START_SECONDS)
        requests = set(state.active_requests)
    # A request that the pool has received has a result to come; others wait for a process or for their ETA.
    given = (r for r in requests if r in state.active_requests or r._apply_result is not None)
    return {request.message.delivery_tag for request in given}


RECONNECT_SECONDS = 5.0
"""Within this time after an outage every worker has connected again: it tries every two seconds."""

UNKNOWN_STEP_SECONDS = 5.0
"""Delay of a step that this worker does not know, so that old workers do not fetch it again and again."""

STOPPING_STATES = {bootsteps.CLOSE, bootsteps.TERMINATE}


class Consumer(consumer.Consumer):
    """The consumer that the setting `worker_consumer` names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._waiting_acks: deque[Callable[[], object]] = deque()
        self._one_at_a_time: AbstractContextManager[object] = nullcontext()
        self._loop_runs = False
        self._missed_broker = False
        limit_decompression()
        # With gossip every worker reads the heartbeats of all. Whatever the command line says.
        super().__init__(*args, **{**kwargs, "without_gossip": True, "without_mingle": True})

    # -- bad messages are kept with the reason; they are never logged and never block those behind them ----

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Reject a message of neither of Celery's protocols."""
        self._reject(message, "not a task message")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """Reject a task that is not registered; a step of a newer release goes back to its queue.

        Celery would log the body and drop it.
        """
        headers = message.headers or {}
        is_step = bool(headers.get(STEP_HEADER))
        if is_step and may_be_of_newer_worker(self, headers.get("id")):
            self._requeue_later(message)
            return
        self._reject(message, UNKNOWN_STEP if is_step else "unknown task")
        signals.task_unknown.send(
            sender=self, message=message, exc=exc, name=headers.get("task"), id=headers.get("id")
        )

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """Reject a task message whose mistake only Celery finds; the error's text may show values."""
        self._reject(message, f"invalid task message: {type(exc).__name__}", exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Reject a body in a format that is not accepted."""
        self._reject(message, f"body cannot be decoded: {type(exc).__name__}", exc)

    def create_task_handler(self, promise: Any = promise) -> Any:
        """Make the function that is called for every message; no error that a message causes leaves it."""
        handle = super().create_task_handler(promise)
        # Kombu counts KeyError as a lost connection; here it means that a message lacks something.
        broker_errors = (
            *(error for error in self.connection_errors if error is not KeyError),
            OperationalError,
        )

        def on_task_received(message: Any) -> None:
            try:
                validation.check_task_message(message)
                if not self._is_delayed(message):
                    handle(message)
            except validation.NotATaskError as error:
                self._reject(message, str(error), error)
            except broker_errors:
                raise
            except Exception as error:
                self._reject(message, f"cannot be handled: {type(error).__name__}", error)

        return on_task_received

    @staticmethod
    def _is_delayed(message: Any) -> bool:
        """Whether a message with a countdown or ETA went to Redis's delayed messages.

        When its time has come by Redis's clock, its ETA is hidden from Celery, which would keep it in memory,
        by this machine's clock.
        """
        if not isinstance(message.channel, Channel):
            return False
        fields = message.headers if "task" in message.headers else message.payload
        if fields.get("eta") is None:
            return False
        tag, is_honoured = message.delivery_tag, fields.get(HONOURED_ETA) is not None
        # A publisher on kombu's transport has left it to the consumer.
        if not is_honoured and message.channel.delay_until(tag, validation.timestamp_of(fields["eta"])):
            message.channel.qos.release(tag)
            return True
        fields[HONOURED_ETA], fields["eta"] = fields["eta"], None
        return False

    def update_strategies(self) -> None:
        """Make the tracers of all tasks and guard them."""
        super().update_strategies()
        _guard_tracers(self.app)

    def _reject(self, message: Any, reason: str, exc: Exception | None = None) -> None:
        if message.acknowledged:
            return  # The task ran; the error came after it.
        if keep_rejected(self, rejected_message(message, reason)):
            message.reject_log_error(worker_logger, self.connection_errors)
            signals.task_rejected.send(sender=self, message=message, exc=exc)
        elif isinstance(message.channel, Channel):
            message.channel.qos.release(message.delivery_tag)

    def _requeue_later(self, message: Any) -> None:
        """Leave a message to a newer worker of the fleet, which may fetch it after a while."""
        log.warning("step of a newer release requeued", task=message.headers.get("task"))
        channel, tag = message.channel, message.delivery_tag
        # At random: else the same one of workers that look in one rhythm would always fetch it first.
        delay = random.uniform(0.6, 1.0) * UNKNOWN_STEP_SECONDS
        if isinstance(channel, Channel):
            channel.run_or_defer(lambda unacked: unacked.delay_fetched(tag, delay))
            channel.qos.release(tag)
            channel.release_watch()
        else:
            errors = self.connection_errors
            self.timer.call_after(delay, message.reject_log_error, (worker_logger, errors), {"requeue": True})

    # -- lost brokers --------------------------------------------------------------------------------------

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, trying at least every two seconds; stock waits up to 30 s after a long outage."""

        def report(error: Exception, _interval: float) -> None:
            self._missed_broker = True
            log.error("broker unavailable", broker=conn.as_uri(), error_type=type(error).__name__)

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
        """Connect; at start, a Redis Cluster ends the worker."""
        conn = super().connect()
        channel = conn.default_channel
        if not isinstance(channel, Channel):
            # While the worker stops, threads acknowledge, and would write into each other's frames.
            self._one_at_a_time = threading.Lock()
        else:
            if self.restart_count or self._missed_broker:
                self._catch_up(channel)
            try:
                reject_cluster(channel.unacked.client)
            except RedisClusterError as error:
                log.critical(str(error))
                if self.restart_count == 0:
                    raise WorkerShutdown(EX_CONFIG) from None
        return conn

    def _catch_up(self, channel: Channel) -> None:
        """After an outage: send what this process owes Redis before any worker redelivers messages.

        The outage may have been longer than the visibility timeout. Tasks that ended in it are acknowledged,
        those that still run get their time again, and the other workers get some seconds to do the same.
        """
        channel.connection.delay_redelivery(RECONNECT_SECONDS)
        self._run_waiting_acks()
        channel.pending_acks.flush(channel.unacked)
        channel.unacked.extend(in_flight(self.pool, stopping=False), channel.visibility_timeout)
        self._missed_broker = False

    def on_ready(self) -> None:
        """Celery starts the event loop."""
        self._loop_runs = True
        super().on_ready()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Keep the messages in flight; stock requeues them at once and so runs their tasks twice."""
        self._loop_runs = False
        self._run_waiting_acks()
        self._requeue_held(stopping=False)
        super().on_connection_error_after_connected(exc)

    # -- requeueing ----------------------------------------------------------------------------------------

    def on_close(self) -> None:
        """The worker stops, or its connection is lost: requeue at once what the pool has not begun.

        Stock requeues it when the last running task has ended.
        """
        if self.connection is not None:
            self._requeue_held(stopping=True)
        super().on_close()

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge: in the event loop while that runs, else at once.

        In an outage the loop runs again only after the reconnect, in a stopping worker at the very end.
        """
        p = ppartial(p, *args, **kwargs)
        # Added first: a thread that sets `_loop_runs` to false runs it then.
        self._waiting_acks.append(p)
        if self.hub is not None and self._loop_runs and self.blueprint.state not in STOPPING_STATES:
            self.hub.call_soon(self._run_waiting_acks)
        else:
            self._run_waiting_acks()
        return p

    def _run_waiting_acks(self) -> None:
        while True:
            try:
                acknowledge = self._waiting_acks.popleft()
            except IndexError:
                return
            try:
                with self._one_at_a_time:
                    acknowledge()
            except Exception as error:
                log.error("acknowledgement failed", error_type=type(error).__name__)

    def _channel(self) -> Channel | None:
        channel = self.task_consumer.channel if self.task_consumer else None
        return channel if isinstance(channel, Channel) else None

    def _requeue_held(self, *, stopping: bool) -> None:
        channel = self._channel()
        if channel is None or channel.closed:
            return
        if stopping:
            channel.stop_fetching()
        requeued = channel.qos.requeue_held(keep=in_flight(self.pool, stopping=stopping))
        log.info("messages requeued", count=requeued, stopping=stopping)
        if not stopping:
            channel.qos.forget()
