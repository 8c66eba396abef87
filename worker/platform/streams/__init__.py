"""Follows the logs of Ray jobs, over a websocket or a chunked HTTP stream, within limits."""

from worker.platform.streams.parser import StreamLimits, StreamProtocol
from worker.platform.streams.tail import AsyncLogTail

__all__ = ["AsyncLogTail", "StreamLimits", "StreamProtocol"]
