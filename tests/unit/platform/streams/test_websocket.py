"""A log over a websocket: frames, close codes, limits."""

import pytest

from tests.unit.platform.stream_server import Wire, log_server
from tests.unit.platform.streams.async_tail import failure_of, tail_of
from worker.platform import (
    ClientConnectionError,
    ClientError,
    StreamLimitExceededError,
    WebSocketError,
)


@pytest.mark.parametrize(
    ("code", "kind"), [(1001, ClientConnectionError), (1012, ClientConnectionError), (1011, WebSocketError)]
)
async def test_what_the_code_of_a_closed_websocket_means(code: int, kind: type[ClientError]) -> None:
    lines, error = await failure_of(lambda wire: wire.accept().line("a").finish(code, "why?a=b"), "websocket")

    assert (lines, type(error)) == (["a"], kind)


async def test_a_message_may_come_in_fragments_with_a_ping_between() -> None:
    def script(wire: Wire) -> None:
        wire.accept()
        wire._write(b"\x01\x03one" + b"\x89\x04ping" + b"\x00\x04\ntwo" + b"\x80\x01\n")
        assert wire._handler.connection.recv(2)[0] == 0x8A  # the answer to the ping
        wire.complete()

    with log_server(script) as server:
        assert [line async for line in tail_of(server, "websocket")] == ["one", "two"]


async def test_a_message_above_the_whole_limit_is_not_accepted() -> None:
    _, error = await failure_of(lambda wire: wire.accept().piece("x" * 2000), "websocket", max_bytes=1000)

    assert isinstance(error, StreamLimitExceededError)
