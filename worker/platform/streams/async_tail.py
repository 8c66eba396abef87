"""A log on an event loop: for a relay that follows a thousand of them without a thread each."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from worker.platform.errors import ClientError
from worker.platform.streams.async_http import http_batches
from worker.platform.streams.limits import StreamProtocol, Transport, transports_of
from worker.platform.streams.reader import LogReader
from worker.platform.streams.target import StreamTarget, may_fall_back, websocket_missing

Batches = AsyncGenerator[list[str]]


class AsyncLogTail:
    """One job's log, line by line. Nothing is sent before the first line is asked for; to be read once.

    When the iteration ends, well or not, `completed` tells whether the agent said so: otherwise the line was
    merely closed, and whether the job is over has to be asked for. `rest` is then what stood behind the last
    line end; it is not among the lines, because another connection may bring the whole of that line.
    """

    def __init__(self, target: StreamTarget, protocol: StreamProtocol = "auto") -> None:
        self._target = target
        self._transports = transports_of(protocol)
        self._reader = LogReader(target.limits)
        self._rest: list[str] = []

    @property
    def completed(self) -> bool:
        """Whether the agent said that the log is complete."""
        return self._reader.completed

    @property
    def rest(self) -> str | None:
        """The beginning of a line whose end has not come."""
        return self._rest[-1] if self._rest else None

    async def __aiter__(self) -> AsyncIterator[str]:
        async with contextlib.aclosing(self.batches()) as batches:
            async for batch in batches:
                for line in batch:
                    yield line

    async def batches(self) -> Batches:
        """The lines, as many at a time as came together. Close it (`aclosing`) when leaving it early."""
        for left, transport in enumerate(self._transports, 1 - len(self._transports)):
            failure, given = None, False
            self._reader = LogReader(self._target.limits)
            try:
                async with contextlib.aclosing(self._read(transport)) as batches:
                    async for batch in batches:
                        if batch:
                            given = True
                            yield batch
            except ClientError as error:
                failure = error
            if failure is None:
                failure = self._reader.failure
            self._rest = self._reader.end()
            if failure is None:
                return
            if given or left == 0 or not may_fall_back(failure):
                raise failure

    def _read(self, transport: Transport) -> Batches:
        if transport == "stream":
            return http_batches(self._target, self._reader)
        try:
            from worker.platform.streams.async_websocket import websocket_batches
        except ImportError:
            missing = websocket_missing()
        else:
            return websocket_batches(self._target, self._reader)
        raise missing
