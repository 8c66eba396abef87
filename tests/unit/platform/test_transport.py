"""Over TLS: logs come as they do without it, and who cannot prove its name is reported nothing."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.unit.platform.stream_server import Wire, log_server
from worker.platform import AgentClient, ClientConnectionError
from worker.platform.deadlines import tls_context

both = pytest.mark.parametrize("protocol", ["stream", "websocket"])


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_side(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def _trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()


def two_megabytes(wire: Wire) -> None:
    wire.accept()
    for _ in range(2_000):
        wire.line("x" * 1_000)
    wire.complete()
    wire.wait_until_left()


@both
@pytest.mark.usefixtures("_trusted")
async def test_a_log_comes_whole(server_side: ssl.SSLContext, protocol: Any) -> None:
    with log_server(two_megabytes, server_side) as server, AgentClient(server.url, "token") as client:
        tail = client.log_tail("job-1", 5, protocol)
        lines = [line async for line in tail]

    assert lines == ["x" * 1_000] * 2_000
    assert tail.completed


@both
@pytest.mark.usefixtures("_trusted")
def test_a_log_comes_whole_in_a_plain_process(server_side: ssl.SSLContext, protocol: Any) -> None:
    with log_server(two_megabytes, server_side) as server, AgentClient(server.url, "token") as client:
        assert sum(1 for _ in client.tail_job_logs("job-1", 5, protocol=protocol)) == 2_000


@both
async def test_who_is_not_trusted_gets_no_token(server_side: ssl.SSLContext, protocol: Any) -> None:
    with log_server(two_megabytes, server_side) as server, AgentClient(server.url, "token") as client:
        tail = client.log_tail("job-1", 5, protocol)
        with pytest.raises(ClientConnectionError, match="certificate is not trusted"):
            _ = [line async for line in tail]

    assert server.headers == []
