"""Tails of a log server's log on the event loop of a test."""

import traceback
from typing import Any

import pytest

from tests.unit.platform.stream_server import LogServer, Script, log_server
from worker.platform import AgentClient, AsyncLogTail, ClientError, StreamLimits

TOKEN = "private-agent-token"


def tail_of(server: LogServer, protocol: Any, seconds: float = 5, **limits: int) -> AsyncLogTail:
    """A tail with an idle timeout of `seconds`."""
    # A tail does not need its client, which is closed here.
    with AgentClient(server.url, TOKEN, stream_limits=StreamLimits(**limits)) as client:
        return client.log_tail("job-1", seconds, protocol)


async def collect(tail: AsyncLogTail, lines: list[str]) -> None:
    """Append the lines to `lines`, which keeps those before an error."""
    async for line in tail:
        lines.append(line)  # noqa: PERF401


async def failure_of(
    script: Script, protocol: Any, seconds: float = 5, **limits: int
) -> tuple[list[str], ClientError]:
    """The lines before the error that ends the log of `script`, and the error, which shows no secret."""
    lines: list[str] = []
    with log_server(script) as server:
        tail = tail_of(server, protocol, seconds, **limits)
        with pytest.raises(ClientError) as caught:
            await collect(tail, lines)
    text = "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None
    assert TOKEN not in text
    assert "127.0.0.1" not in text
    assert not tail.completed
    return lines, caught.value
