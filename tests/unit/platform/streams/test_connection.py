"""What connections of both protocols have in common."""

import asyncio
import contextlib
import socket
import time
from typing import Any

import pytest

from tests.unit.platform.stream_server import Wire, log_server
from tests.unit.platform.streams.async_tail import TOKEN, tail_of
from worker.platform import (
    ClientTimeoutError,
    StreamLimits,
)
from worker.platform.streams.connection import StreamTarget, enable_keepalive, websocket_url

both = pytest.mark.parametrize("protocol", ["stream", "websocket"])


@both
async def test_idle_time_is_counted_only_while_the_reader_waits(protocol: Any) -> None:
    def script(wire: Wire) -> None:
        wire.accept().line("a")
        # The agent's pauses: each is shorter than the idle timeout, both together are longer.
        time.sleep(0.5)
        wire.line("b")
        time.sleep(0.5)
        wire.line("c").wait_until_left()

    lines = []
    with log_server(script) as server, contextlib.suppress(ClientTimeoutError):
        async for line in tail_of(server, protocol, 0.9):
            lines.append(line)
            if line == "a":
                # The reader's pause is longer than the idle timeout.
                await asyncio.sleep(1.2)
        lines.append("the end of the log")

    assert lines == ["a", "b", "c"]


TARGET = StreamTarget(
    stream_url="https://host/a/",
    websocket_url=websocket_url("https://host/a/"),
    headers={"authorization": TOKEN, "accept": "text/plain", "user-agent": "x"},
    connect_timeout=1,
    idle_timeout=1,
    limits=StreamLimits(),
)


def test_a_target_shows_neither_urls_nor_tokens() -> None:
    assert TOKEN not in repr(TARGET)
    assert "host" not in repr(TARGET)


def test_each_protocol_gets_headers_of_its_own() -> None:
    assert TARGET.websocket_headers() == {"authorization": TOKEN}
    assert TARGET.stream_headers() == {**TARGET.headers, "accept-encoding": "identity"}


def test_a_websocket_has_a_scheme_of_its_own() -> None:
    assert TARGET.websocket_url == "wss://host/a/"
    assert websocket_url("http://host/a/") == "ws://host/a/"


def test_a_lost_machine_is_noticed_within_a_minute() -> None:
    with socket.socket() as sock:
        enable_keepalive(sock)

        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, interval, count = (
            sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        )
        assert idle + interval * count <= 60


def test_a_closed_socket_is_accepted() -> None:
    closed = socket.socket()
    closed.close()

    enable_keepalive(closed)
    enable_keepalive(None)

    assert closed.fileno() == -1
