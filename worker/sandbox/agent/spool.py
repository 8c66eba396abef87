"""One job's log for any number of followers: read from Ray once, into a file that has no name."""

import asyncio
import codecs
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

PIECE: Final = 64 * 1024


class Spool:
    """Fills as fast as `texts` come; each follower reads at its own pace, from the beginning.

    The file keeps the memory flat, however slow a follower, and a thousand of them cost Ray one.
    """

    def __init__(self, texts: AsyncGenerator[str]) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed after its last follower
        self._news = asyncio.Event()
        self._texts = texts
        self._filling = asyncio.create_task(self._fill())
        self._filling.add_done_callback(self._announce)
        self.followers = 0

    @property
    def broken(self) -> bool:
        """Whether filling has failed, so that whoever comes now should try anew."""
        return self._filling.done() and (self._filling.cancelled() or self._filling.exception() is not None)

    async def follow(self) -> AsyncIterator[str]:
        """All of the log, from its beginning to its end; raises what the filling raised."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        offset = 0
        while True:
            # In this order: what is written after the look is announced by the event looked at.
            news, is_all = self._news, self._filling.done()
            data = os.pread(self._file.fileno(), PIECE, offset)
            if data:
                offset += len(data)
                yield decoder.decode(data)
            elif is_all:
                self._filling.result()
                return
            else:
                await news.wait()

    async def close(self) -> None:
        """Leave Ray and the file; only when nobody follows any more."""
        self._filling.cancel()
        await asyncio.gather(self._filling, return_exceptions=True)
        await self._texts.aclose()
        self._file.close()

    async def _fill(self) -> None:
        async for text in self._texts:
            self._file.write(text.encode(errors="replace"))
            self._announce()

    def _announce(self, _: object = None) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


class Spools:
    """The spools of the logs that are followed at the moment."""

    def __init__(self) -> None:
        self._spools: dict[str, Spool] = {}

    async def follow(self, key: str, texts: Callable[[], AsyncGenerator[str]]) -> AsyncGenerator[str]:
        """All of one log; `texts` reads it where nobody does so yet."""
        spool = self._spools.get(key)
        if spool is None or spool.broken:
            spool = self._spools[key] = Spool(texts())
        spool.followers += 1
        try:
            async for text in spool.follow():
                yield text
        finally:
            spool.followers -= 1
            if not spool.followers:
                if self._spools.get(key) is spool:
                    del self._spools[key]
                await spool.close()
