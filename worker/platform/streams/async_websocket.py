"""The websocket on an event loop."""

import asyncio
from collections.abc import AsyncGenerator

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from worker.platform.streams.connection import keep_alive
from worker.platform.streams.failures import closed_in_order, websocket_error
from worker.platform.streams.reader import LogReader
from worker.platform.streams.target import StreamTarget
from worker.platform.streams.websocket import options


class _Direct(connect):
    """Does not follow redirects: the tokens would go to whoever the answer names."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def websocket_batches(target: StreamTarget, reader: LogReader) -> AsyncGenerator[list[str]]:
    """Feed `reader` from the websocket until it is over or the agent closes; raises `ClientError`."""
    try:
        async with _Direct(target.websocket_url, **options(target)) as websocket:
            keep_alive(websocket.transport.get_extra_info("socket"))
            while not reader.over:
                async with asyncio.timeout(target.silence):
                    message = await websocket.recv(decode=False)
                yield reader.message(message)
            return
    except (WebSocketException, OSError) as error:
        failure = None if closed_in_order(error) else websocket_error(error)
    # Outside of the except block: the original knows the URL.
    if failure is not None:
        raise failure
