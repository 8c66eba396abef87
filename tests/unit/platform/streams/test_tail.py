"""Logs on an event loop: the same lines, errors and limits, and what a relay has to know besides."""

import asyncio
import contextlib
import time
import tracemalloc
from typing import Any

import pytest

from tests.unit.platform.stream_server import LogServer, Script, Wire, log_server
from tests.unit.platform.streams.async_tail import TOKEN, failure_of, tail_of
from worker.platform import (
    ClientConnectionError,
    ClientTimeoutError,
    NotFoundError,
    StreamError,
    StreamLimitExceededError,
    WebSocketError,
)

both = pytest.mark.parametrize("protocol", ["stream", "websocket"])


@both
async def test_a_log_that_is_complete(protocol: Any) -> None:
    def script(wire: Wire) -> None:
        wire.accept().line("a").event(message="한국어").event(type="complete")
        wire.wait_until_left()

    with log_server(script) as server:
        tail = tail_of(server, protocol)
        assert [line async for line in tail] == ["a", "한국어"]

        assert (tail.completed, tail.partial_line) == (True, None)
        assert await asyncio.to_thread(server.one_has_left)
        assert server.headers[0]["authorization"] == TOKEN


@both
async def test_opening_fails_before_the_first_line(protocol: Any) -> None:
    with log_server(lambda wire: wire.reject(404)) as server, pytest.raises(NotFoundError):
        await tail_of(server, protocol).open()


@both
async def test_an_opened_log_has_all_of_its_lines(protocol: Any) -> None:
    with log_server(lambda wire: wire.accept().line("a").line("b").complete()) as server:
        tail = tail_of(server, protocol)
        await tail.open()
        assert [line async for line in tail] == ["a", "b"]
        assert len(server.paths) == 1


@both
async def test_a_closed_line_proves_nothing_and_half_a_line_is_none(protocol: Any) -> None:
    with log_server(lambda wire: wire.accept().piece("a\n").piece("hal").finish()) as server:
        tail = tail_of(server, protocol)
        assert [line async for line in tail] == ["a"]

    assert (tail.completed, tail.partial_line) == (False, "hal")


@both
async def test_failures_are_the_sync_client_s(protocol: Any) -> None:
    assert type((await failure_of(lambda wire: wire.reject(404), protocol))[1]) is NotFoundError
    assert (
        type((await failure_of(lambda wire: wire.wait_until_left(), protocol, 0.1))[1]) is ClientTimeoutError
    )
    lines, error = await failure_of(lambda wire: wire.accept().line("a").wait_until_left(), protocol, 2)
    assert (lines, type(error)) == (["a"], ClientTimeoutError)
    lines, error = await failure_of(lambda wire: wire.accept().line("a") and None, protocol)
    assert (lines, type(error)) == (["a"], ClientConnectionError)
    lines, error = await failure_of(
        lambda wire: wire.accept().line("a").event(type="error", message=TOKEN), protocol
    )
    assert (lines, type(error), str(error)) == (["a"], StreamError, "***")
    lines, error = await failure_of(
        lambda wire: [wire.accept(), *map(wire.line, "abc")], protocol, max_lines=2
    )
    assert (lines, type(error)) == (["a", "b"], StreamLimitExceededError)


@both
async def test_nobody_listens(protocol: Any) -> None:
    with log_server(lambda wire: None) as server:
        pass
    with pytest.raises(ClientConnectionError, match="nobody listens"):
        await anext(aiter(tail_of(server, protocol)))


@both
async def test_redirects_are_not_followed(protocol: Any) -> None:
    with log_server(lambda wire: wire.accept().complete()) as other:
        _, error = await failure_of(lambda wire: wire.reject(307, Location=other.url), protocol)

    assert (error.status, other.paths) == (307, [])


@pytest.mark.parametrize("fail", [lambda wire: wire.reject(200), lambda wire: wire.accept() and None])
async def test_auto_falls_back_before_the_first_line(fail: Script) -> None:
    def script(wire: Wire) -> object:
        return fail(wire) if wire.is_websocket else wire.accept().line("over http").complete()

    with log_server(script) as server:
        tail = tail_of(server, "auto")
        assert [line async for line in tail] == ["over http"]
        assert tail.completed


async def test_auto_stays_once_a_line_has_come() -> None:
    lines, error = await failure_of(lambda wire: wire.accept().line("a").finish(1011), "auto")

    assert (lines, type(error)) == (["a"], WebSocketError)


@both
@pytest.mark.parametrize("leave", ["cancel", "close"])
async def test_whoever_leaves_hangs_up(protocol: Any, leave: str) -> None:
    with log_server(lambda wire: wire.accept().line("a").wait_until_left()) as server:
        tail = tail_of(server, protocol, 60)
        if leave == "close":
            async with contextlib.aclosing(tail.batches()) as batches:
                assert await anext(batches) == ["a"]
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    assert [line async for line in tail] == ["never"]
        assert await asyncio.to_thread(server.one_has_left)


@both
async def test_a_slow_reader_holds_the_agent_up(protocol: Any) -> None:
    sent = 0

    def script(wire: Wire) -> None:
        nonlocal sent
        wire.accept()
        while True:
            wire.line("x" * 1000)
            sent += 1

    with log_server(script) as server:
        async with contextlib.aclosing(tail_of(server, protocol).batches()) as batches:
            await anext(batches)
            deadline = asyncio.get_running_loop().time() + 5
            before = -1
            while before != sent:
                assert asyncio.get_running_loop().time() < deadline
                before = sent
                await asyncio.sleep(0.2)

    assert 0 < sent < 12_000


@both
async def test_many_logs_share_one_thread(protocol: Any) -> None:
    def script(wire: Wire) -> None:
        wire.accept()
        for number in range(50):
            wire.line(str(number))
        wire.complete()

    async def lines(server: LogServer) -> list[str]:
        return [line async for line in tail_of(server, protocol, 20)]

    with log_server(script) as server:
        found = await asyncio.gather(*(lines(server) for _ in range(50)))

    assert found == [[str(number) for number in range(50)]] * 50


@both
async def test_an_agent_that_drips_its_answer_is_a_timeout(protocol: Any) -> None:
    def script(wire: Wire) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nX-Drip: " + b"x" * 1000:
            wire._write(bytes([byte]))
            time.sleep(0.02)  # so slowly that it never ends in time

    async with asyncio.timeout(3):
        assert type((await failure_of(script, protocol, 0.3))[1]) is ClientTimeoutError


@both
async def test_memory_stays_flat_however_long_a_line_grows(protocol: Any) -> None:
    def script(wire: Wire) -> None:
        wire.accept().piece("first\n")
        for _ in range(1000):
            wire.piece("x" * 50_000)

    tracemalloc.start()
    try:
        lines, error = await failure_of(script, protocol, 20, max_bytes=40_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert lines == ["first"]
    assert isinstance(error, StreamLimitExceededError)
    assert peak < 8_000_000


@both
async def test_neither_cookies_nor_the_environment_s_proxy_are_used(
    protocol: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with log_server(lambda wire: wire.accept().line("a").complete()) as server:
        assert [line async for line in tail_of(server, protocol)] == ["a"]

    assert "cookie" not in server.headers[0]
    assert server.headers[0]["user-agent"] == "synapse-worker"


@pytest.mark.parametrize("status", [400, 401, 408, 500])
@both
async def test_a_rejection_says_what_the_agent_says(protocol: Any, status: int) -> None:
    rejection = b'{"detail": "no: token=s3cret1"}'
    lines, error = await failure_of(lambda wire: wire.reject(status, rejection), protocol)

    assert (lines, error.status, error.detail) == ([], status, "no: token=***")
