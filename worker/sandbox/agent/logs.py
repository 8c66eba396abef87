"""A job's log as the agent gives it: whole, as chunked lines, and as events over a websocket."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, Callable
from typing import Final

from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from worker.platform.streams.parser import EVENT_PREFIX, LineSplitter
from worker.sandbox.agent.dashboard import Dashboard, job_path
from worker.sandbox.agent.ray_log import LogBroken, RayLogs
from worker.sandbox.agent.spool import Spools
from worker.sandbox.http import Api, Refusal, answer, refusal

LONGEST_LINE: Final = 512 * 1024
"""Bytes; what is above is cut and marked."""

MISREAD: Final = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
"""Characters at which some readers of lines end one."""

COMPLETE: Final = '{"type": "complete"}'


class JobLogs:
    """Handlers of logs. A follower costs a socket and no thread."""

    def __init__(self, dashboard: Dashboard, authorise: Callable[[HTTPConnection], None]) -> None:
        self._dashboard, self._authorise = dashboard, authorise
        self._logs, self._spools = RayLogs(dashboard), Spools()

    def routes(self, api: Api) -> list[BaseRoute]:
        """Their addresses."""
        return [
            api.route("/jobs/{id}/logs/", GET=self.whole),
            api.route("/jobs/{id}/logs/stream/", GET=self.stream),
            WebSocketRoute("/jobs/{id}/logs/", self.websocket),
        ]

    async def whole(self, request: Request, _body: object) -> object:
        """`GET jobs/{id}/logs/`: all of the log so far, as text."""
        path = await self._found(request)
        try:
            return PlainTextResponse(await self._logs.so_far(path))
        except LogBroken as broken:
            raise refusal(502, str(broken)) from None

    async def stream(self, request: Request, _body: object) -> object:
        """`GET jobs/{id}/logs/stream/`: plain lines, at the end an event."""
        path = await self._found(request)
        return StreamingResponse(self._chunks(path), media_type="text/plain")

    async def websocket(self, websocket: WebSocket) -> None:
        """Websocket on `jobs/{id}/logs/`: an event a line."""
        try:
            self._authorise(websocket)
            path = await self._found(websocket)
        except Refusal as refused:
            await websocket.send_denial_response(answer(refused.body, refused.status))
            return
        await websocket.accept()
        sending = asyncio.create_task(self._send(websocket, path))
        gone = asyncio.create_task(_gone(websocket))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _found(self, connection: HTTPConnection) -> str:
        path = job_path(connection)
        if (await self._dashboard.get(path))["type"] != "SUBMISSION":
            raise refusal(400, "Only a submitted job has a log.")
        return path

    async def _chunks(self, path: str) -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(self._batches(path)) as batches:
            async for lines, end in batches:
                yield "".join([*map(_chunk, lines), *([f"{EVENT_PREFIX} {end}\n\n"] if end else [])]).encode()

    async def _send(self, websocket: WebSocket, path: str) -> None:
        # The follower may go at any moment.
        with contextlib.suppress(WebSocketDisconnect, OSError):
            async with contextlib.aclosing(self._batches(path)) as batches:
                async for lines, end in batches:
                    for line in lines:
                        await websocket.send_text(_event("log", line))
                    if end:
                        await websocket.send_text(end)
            await websocket.close()

    async def _batches(self, path: str) -> AsyncGenerator[tuple[list[str], str]]:
        """Lines, and with the last of them the event that ends the stream."""
        splitter = LineSplitter(LONGEST_LINE)
        try:
            async with contextlib.aclosing(
                self._spools.follow(path, lambda: self._logs.texts(path))
            ) as texts:
                async for text in texts:
                    yield splitter.feed(text), ""
        except LogBroken as broken:
            yield [], _event("error", str(broken))
        else:
            yield splitter.end(), COMPLETE


def _chunk(line: str) -> str:
    # What would be misread as something else than one line goes as an event.
    if not line or line.startswith(EVENT_PREFIX) or MISREAD.search(line):
        return f"{EVENT_PREFIX} {_event('log', line)}\n\n"
    return f"{line}\n"


def _event(kind: str, message: str) -> str:
    return json.dumps({"type": kind, "message": message})


async def _gone(websocket: WebSocket) -> None:
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
