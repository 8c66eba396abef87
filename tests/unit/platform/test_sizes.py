"""What is too large: an answer beyond the limit of the settings, a request that gets a 413."""

from collections.abc import Iterator
from socket import SHUT_WR
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from worker import blame
from worker.platform import (
    AsyncBackendClient,
    BackendClient,
    ClientError,
    HTTPError,
    ResponseTooLargeError,
    RetryPolicy,
    limit_responses,
)
from worker.platform.transport import DEFAULT_MAX_RESPONSE_MB
from worker.settings import MB, Settings

if TYPE_CHECKING:
    from conftest import Service

LARGE = {"data": "x" * (12 * MB)}


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    yield
    limit_responses(DEFAULT_MAX_RESPONSE_MB)


class Rejection(StreamRequestHandler):
    """As nginx does: it answers before it has read the body, and reads on, so that the answer is not lost."""

    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.connection.shutdown(SHUT_WR)
        while self.connection.recv(MB):
            pass


@pytest.fixture
def proxy() -> Iterator[str]:
    with ThreadingTCPServer(("127.0.0.1", 0), Rejection) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_setting_has_the_clients_default() -> None:
    assert Settings.model_fields["worker_max_answer_mb"].default == DEFAULT_MAX_RESPONSE_MB


def test_an_answer_within_the_limit_of_the_settings_is_read(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({"id": 7, "text": "x" * (20 * MB)})
    limit_responses(24)

    with BackendClient(service.url, "t", retries=hasty) as backend:
        assert len(backend.get_task(7)["text"]) == 20 * MB


async def test_an_answer_that_is_too_large_fails_once_with_both_sizes(
    service: "Service", hasty: RetryPolicy
) -> None:
    service.answers({"id": 7, "text": "x" * (20 * MB)})

    async with AsyncBackendClient(service.url, "t", retries=hasty) as backend:
        with pytest.raises(ResponseTooLargeError, match=r"its 20\.0 MB are larger than 16 MB \(WORKER_MAX"):
            await backend.get_task(7)

    assert len(service.seen) == 1


@pytest.mark.parametrize("is_early", [False, True])
async def test_a_request_that_is_too_large_fails_once_with_its_size(
    service: "Service", proxy: str, hasty: RetryPolicy, is_early: bool
) -> None:
    url = proxy if is_early else service.answers({}, status=413).url
    said = r"^413 .*Too Large \(the request has 12\.00 MB\)"

    async with AsyncBackendClient(url, "t", retries=hasty) as asynchronous:
        with pytest.raises(HTTPError, match=said):
            await asynchronous.annotate_task_data(7, LARGE)
    with BackendClient(url, "t", retries=hasty) as synchronous, pytest.raises(HTTPError, match=said):
        synchronous.annotate_task_data(7, LARGE)

    assert len(service.seen) == (0 if is_early else 2)


@pytest.mark.parametrize("error", [ResponseTooLargeError(), HTTPError("", 413)])
def test_what_is_too_large_fails_its_own_task_at_once(error: ClientError) -> None:
    assert blame.in_task(error) == blame.Blame(blame.Owner.TASK, blame.Retries.NONE)
