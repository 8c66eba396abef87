"""The async client on a real wire: the same answers, errors and retries as the sync one, many at once."""

import asyncio
import gzip
import time
import traceback
import zlib
from typing import TYPE_CHECKING

import pytest

from tests.harness.recorded_spans import PARENT, RecordedSpans, context_of
from worker import tracing
from worker.platform import (
    AsyncBackendClient,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    HTTPError,
    MalformedResponseError,
    NotFoundError,
    RateLimitError,
    RetryPolicy,
)

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

    from conftest import Service

TOKEN = "private-token"


def client_of(service: "Service | str", policy: RetryPolicy, **timeout: float) -> AsyncBackendClient:
    url = service if isinstance(service, str) else service.url
    return AsyncBackendClient(url, TOKEN, tenant="acme", timeout=timeout or None, retries=policy)


async def failure(service: "Service | str", policy: RetryPolicy, **timeout: float) -> ClientError:
    async with client_of(service, policy, **timeout) as client:
        with pytest.raises(ClientError) as caught:
            await client.get_task(7)
    text = "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None
    assert TOKEN not in text
    assert "127.0.0.1" not in text
    return caught.value


async def test_the_annotation_path(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({"id": 7}).answers({"id": 8}).answers({"id": 7}).answers([0.5, "cat"])

    async with client_of(service, hasty) as client:
        assert await client.get_task(7) == {"id": 7}
        assert await client.get_data_unit(8) == {"id": 8}
        assert await client.annotate_task_data(7, {"a": 1}, "any") == {"id": 7}
        assert await client.run_plugin("code", {"agent": 1, "action": "inference", "params": {}}) == [
            0.5,
            "cat",
        ]

    assert [(seen.method, seen.path) for seen in service.seen] == [
        ("GET", "/tasks/7/?fields=id%2Cdata%2Cdata_unit&expand=data_unit"),
        ("GET", "/data_units/8/?expand=files"),
        ("PUT", "/tasks/7/annotate_task_data/?schema=any"),
        ("POST", "/plugins/code/run/"),
    ]
    assert service.seen[2].json == {"action": "submit", "data": {"a": 1}}
    assert service.seen[2].headers["content-type"] == "application/json"
    assert service.seen[0].headers["synapse-access-token"] == f"Token {TOKEN}"
    assert service.seen[0].headers["synapse-tenant"] == "Token acme"
    assert len({seen.connection for seen in service.seen}) == 1


async def test_many_calls_share_few_connections(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({"id": 1})

    async with AsyncBackendClient(service.url, TOKEN, connections=4, retries=hasty) as client:
        await asyncio.gather(*(client.get_task(1) for _ in range(100)))

    assert len({seen.connection for seen in service.seen}) <= 4


async def test_waiting_for_a_slot_is_not_the_service_s_time(service: "Service") -> None:
    def answer_late(handler: "BaseHTTPRequestHandler") -> None:
        service.ended.wait(0.1)
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    service.behaves(answer_late)
    one_attempt = RetryPolicy(attempts=1)
    timeout = {"connect": 0.3, "read": 0.3, "total": 0.3}

    async with AsyncBackendClient(
        service.url, TOKEN, connections=1, timeout=timeout, retries=one_attempt
    ) as client:
        assert await asyncio.gather(*(client.get_task(1) for _ in range(5))) == [{}] * 5


async def test_a_passing_failure_is_outlived(service: "Service", hasty: RetryPolicy) -> None:
    service.answers(status=503).answers(status=429, headers={"Retry-After": "0"}).answers({"id": 1})

    async with client_of(service, hasty) as client:
        assert await client.get_task(1) == {"id": 1}


async def test_a_call_after_closing_says_so(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({})
    client = client_of(service, hasty)
    await client.aclose()

    with pytest.raises(ClientError, match="the client was closed"):
        await client.get_task(1)

    assert service.seen == []


@pytest.mark.parametrize(("is_sampled", "recorded"), [(True, ["POST plugins/{id}/run/"]), (False, [])])
async def test_an_inference_carries_the_context(
    service: "Service", hasty: RetryPolicy, spans: RecordedSpans, is_sampled: bool, recorded: list[str]
) -> None:
    service.answers([0.5])

    async with client_of(service, hasty) as client:
        with tracing.task_span("process to_task.annotate", PARENT, "42", {}):
            tracing.sample_requests(is_sampled)
            await client.run_plugin("code", {"action": "inference"})
            tracing.sample_requests(True)

    *requests, chunk = spans.ended()
    assert [span.name for span in requests] == recorded
    _, trace, parent, flags = service.seen[0].headers["traceparent"].split("-")
    assert trace == PARENT.split("-")[1]
    assert (parent, bool(int(flags, 16) & 1)) == (
        context_of((requests or [chunk])[0]).split("-")[2],
        is_sampled,
    )


async def test_an_inference_is_sent_once(service: "Service", hasty: RetryPolicy) -> None:
    service.answers(status=429, headers={"Retry-After": "60"})

    async with client_of(service, hasty) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.run_plugin("code", {"action": "inference"})

    assert caught.value.retry_after == 60
    assert len(service.seen) == 1


async def test_an_inference_is_sent_once_when_the_connection_is_lost(
    service: "Service", hasty: RetryPolicy
) -> None:
    service.answers({"id": 1}).writes()

    async with client_of(service, hasty) as client:
        await client.get_task(1)
        with pytest.raises(ClientConnectionError):
            await client.run_plugin("code", {"action": "inference"})

    assert len(service.seen) == 2


async def test_nobody_there_is_a_connection_error(hasty: RetryPolicy) -> None:
    error = await failure("http://127.0.0.1:9", hasty)

    assert isinstance(error, ClientConnectionError)
    assert str(error) == "503 Service Unavailable: nobody listens at the service's address"


async def test_an_unknown_host_is_a_connection_error(hasty: RetryPolicy) -> None:
    error = await failure("http://host.invalid", hasty)

    assert isinstance(error, ClientConnectionError)
    assert str(error) == "503 Service Unavailable: the service's host name is unknown"


async def test_a_lost_connection_is_a_connection_error(service: "Service", hasty: RetryPolicy) -> None:
    service.writes()

    assert isinstance(await failure(service, hasty), ClientConnectionError)


async def test_silence_is_a_timeout(service: "Service") -> None:
    service.is_silent()

    error = await failure(service, RetryPolicy(attempts=1), read=0.05)

    assert isinstance(error, ClientTimeoutError)


@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Drip: "]
)
async def test_a_server_that_drips_bytes_does_not_hold_the_caller(service: "Service", start: bytes) -> None:
    service.drips(start)
    began = time.monotonic()

    error = await failure(service, RetryPolicy(attempts=1), read=0.2, total=0.3)

    assert isinstance(error, ClientTimeoutError)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "answer",
    [
        b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"id": 1',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"id"',
    ],
)
async def test_an_answer_that_is_cut_off_is_malformed_and_tried_again(
    service: "Service", hasty: RetryPolicy, answer: bytes
) -> None:
    service.writes(answer)

    error = await failure(service, hasty)

    assert isinstance(error, MalformedResponseError)
    assert len(service.seen) == 3


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", id="ssh"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", id="not gzip"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", id="html"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", id="empty"),
    ],
)
async def test_what_is_no_answer_is_malformed(service: "Service", hasty: RetryPolicy, answer: bytes) -> None:
    service.writes(answer)

    assert isinstance(await failure(service, hasty), MalformedResponseError)
    assert len(service.seen) == 1


async def test_a_huge_answer_is_rejected_early(service: "Service", hasty: RetryPolicy) -> None:
    service.drips(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n")
    began = time.monotonic()

    assert (
        str(await failure(service, hasty))
        == "malformed answer: its 100.0 MB are larger than 16 MB (WORKER_MAX_ANSWER_MB)"
    )
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("encoding", "bits"),
    [("gzip", 16 + zlib.MAX_WBITS), ("deflate", zlib.MAX_WBITS), ("deflate", -zlib.MAX_WBITS)],
)
async def test_a_compressed_answer_is_read(
    service: "Service", hasty: RetryPolicy, encoding: str, bits: int
) -> None:
    packer = zlib.compressobj(wbits=bits)
    body = packer.compress(b'{"id": 7, "text": "' + b"x" * 100_000 + b'"}') + packer.flush()
    service.answers(body=body, headers={"Content-Encoding": encoding})

    async with client_of(service, hasty) as client:
        assert await client.get_task(7) == {"id": 7, "text": "x" * 100_000}


async def test_a_small_answer_that_unpacks_to_a_huge_one_is_rejected(
    service: "Service", hasty: RetryPolicy
) -> None:
    service.answers(body=gzip.compress(b"x" * 100_000_000, 1), headers={"Content-Encoding": "gzip"})

    assert str(await failure(service, hasty)) == "malformed answer: larger than 16 MB (WORKER_MAX_ANSWER_MB)"


async def test_an_error_says_why(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({"detail": "gone"}, status=404)

    error = await failure(service, hasty)

    assert isinstance(error, NotFoundError)
    assert str(error) == "404 Not Found: gone"


async def test_redirects_are_not_followed(service: "Service", hasty: RetryPolicy) -> None:
    service.answers(status=302, headers={"Location": "/elsewhere/"})

    assert type(await failure(service, hasty)) is HTTPError
    assert len(service.seen) == 1


async def test_a_call_can_be_cancelled(service: "Service", hasty: RetryPolicy) -> None:
    loop, arrived = asyncio.get_running_loop(), asyncio.Event()

    def keep_waiting(_: object) -> None:
        loop.call_soon_threadsafe(arrived.set)
        service.ended.wait(60)

    service.behaves(keep_waiting)

    async with client_of(service, hasty) as client:
        call = asyncio.create_task(client.get_task(1))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


def test_it_is_made_inside_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncBackendClient("http://host", TOKEN)
