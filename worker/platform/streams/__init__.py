"""Logs of Ray jobs as they grow: over a websocket or a chunked stream, under limits."""

from worker.platform.streams.async_tail import AsyncLogTail
from worker.platform.streams.limits import StreamLimits, StreamProtocol

__all__ = ["AsyncLogTail", "StreamLimits", "StreamProtocol"]
