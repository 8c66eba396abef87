"""The relay as a part of the worker: beside the pool, in every worker that consumes the queue `logs`."""

import asyncio
import threading
from typing import Any, Final

import structlog
from celery import bootsteps
from redis.asyncio import BlockingConnectionPool, Redis

from shared.messages import TailLogsMessage
from worker.logs.relay import Relay
from worker.logs.sources import AgentLogs
from worker.platform import clean
from worker.services import services

log = structlog.get_logger(__name__)

STOP_SECONDS: Final = 5.0
RESTART_SECONDS: Final = 1.0
CONNECTIONS: Final = 4


class RelayStep(bootsteps.StartStopStep):
    """Runs the relay's event loop in a thread. It does not depend on the broker's connection."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._main: asyncio.Task[None] | None = None

    def include_if(self, parent: Any) -> bool:
        """Only where bookings come in."""
        return TailLogsMessage.queue in parent.app.amqp.queues.consume_from

    def start(self, parent: Any) -> None:  # noqa: ARG002 - the bootstep's signature
        """The worker is up."""
        self._loop = new_event_loop()
        self._main = self._loop.create_task(_run_for_ever())
        self._thread = threading.Thread(target=self._run, args=(self._loop, self._main), name="log-relay")
        self._thread.daemon = True
        self._thread.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - the bootstep's signature
        """The worker goes down: other relays may have the logs at once."""
        if self._loop is None or self._main is None or self._thread is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join(STOP_SECONDS)

    terminate = stop

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop, main: "asyncio.Task[None]") -> None:
        try:
            loop.run_until_complete(asyncio.wait([main]))
        finally:
            loop.close()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The quicker one where it is installed: it comes with Ray Serve."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _run_for_ever() -> None:
    while True:
        try:
            await run_relay()
        except Exception as error:
            # Its logs are taken on again, by this relay or another, where they stand.
            log.error("relay failed", error_type=type(error).__name__, error=clean(str(error)), exc_info=True)
        await asyncio.sleep(RESTART_SECONDS)


async def run_relay() -> None:
    """One relay with this process's settings, until cancelled."""
    settings = services().settings
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=CONNECTIONS,
        timeout=None,
        decode_responses=True,
        socket_timeout=5,
        socket_connect_timeout=3,
    )
    source = AgentLogs(services())
    try:
        async with Redis.from_pool(pool) as redis:
            await Relay(redis, source, services().stream_limits, settings.worker_log_patience_seconds).run()
    finally:
        source.close()
