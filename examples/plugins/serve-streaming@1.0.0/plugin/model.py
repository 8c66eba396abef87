"""A response that is sent while it is computed, for viewers of long results."""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import StreamingResponse


class Words:
    """Sends the words of `{"text": ...}` one by one, a line each."""

    async def __call__(self, request: Request) -> StreamingResponse:
        text: str = (await request.json())["text"]
        return StreamingResponse(self._words(text), media_type="text/plain")

    async def _words(self, text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield f"{word}\n"
            await asyncio.sleep(0.1)
