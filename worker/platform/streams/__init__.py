"""Logs of Ray jobs as they grow: over a websocket or a chunked stream, under limits."""

from worker.platform.streams.parser import StreamLimits, StreamProtocol
from worker.platform.streams.tail import AsyncLogTail

__all__ = ["AsyncLogTail", "StreamLimits", "StreamProtocol"]
