"""HTTP_PROXY and its like in a pod's environment: nothing of the worker's goes there."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.harness.proxy_trap import PROXY_VARIABLES, proxy_trap
from tests.unit.platform.conftest import Service, service
from tests.unit.platform.stream_server import Wire, log_server
from tests.unit.platform.streams.async_tail import collect, tail_of
from worker.actions.models import create_serve_multiplexed_model_id, open_model
from worker.platform import AgentClient, AsyncBackendClient, BackendClient
from worker.plugins.ray_driver.child import RAY_USES_PROXY, drop_proxies

__all__ = ["service"]  # a fixture


@pytest.fixture(autouse=True)
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    with proxy_trap(monkeypatch) as sent:
        yield sent


def test_the_trap_catches_a_client_that_heeds_the_environment(service: Service, proxy: list[bytes]) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.get(service.url)

    assert proxy
    assert not service.seen


def test_the_synchronous_clients_go_straight(service: Service, proxy: list[bytes]) -> None:
    service.answers({"id": 7}).answers({"allowed": True})

    with BackendClient(service.url, "t") as backend, AgentClient(service.url, "t") as agent:
        backend.get_task(7)
        agent.get_job("1")

    assert (len(service.seen), proxy) == (2, [])


async def test_the_asynchronous_client_goes_straight(service: Service, proxy: list[bytes]) -> None:
    service.answers({"id": 7})

    async with AsyncBackendClient(service.url, "t") as backend:
        assert await backend.get_task(7) == {"id": 7}

    assert proxy == []


@pytest.mark.parametrize("protocol", ["stream", "websocket"])
async def test_logs_come_straight(protocol: Any, proxy: list[bytes]) -> None:
    def script(wire: Wire) -> None:
        wire.accept().line("a").event(type="complete")
        wire.wait_until_left()

    lines: list[str] = []
    with log_server(script) as server:
        await collect(tail_of(server, protocol), lines)

    assert (lines, proxy) == (["a"], [])


async def test_a_model_and_its_file_come_straight(service: Service, proxy: list[bytes]) -> None:
    service.answers({"id": 7, "file": f"{service.url}/model.bin?signature=private"}).answers(body=b"weights")
    token = create_serve_multiplexed_model_id(7, "t", service.url)

    async with open_model(token, service.url) as model:
        assert (model["path"] / "model.download").read_bytes() == b"weights"

    assert proxy == []


def test_rays_library_sees_proxies_by_its_own_setting_alone() -> None:
    environ = dict.fromkeys(PROXY_VARIABLES, "http://proxy") | {"HOME": "/"}
    wanted = environ | {RAY_USES_PROXY: "1"}

    drop_proxies(environ)
    drop_proxies(wanted)

    assert {name for name in environ if name.lower() in ("http_proxy", "grpc_proxy", "all_proxy")} == set()
    assert environ["HOME"] == "/"
    assert wanted["grpc_proxy"] == "http://proxy"
