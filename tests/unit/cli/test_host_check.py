"""What `doctor` says of this host."""

import shutil
import socket
import tempfile
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from worker.cli.checks.host_check import check_disk, check_port, check_proxies, check_tokens
from worker.settings import MB, Settings

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        synapse_host="https://backend.example",
        synapse_access_token="own",
        plugins_dir=tmp_path,
        ray_address=None,
        synapse_agent_url=None,
    )


def with_changes(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update=changes)


@pytest.mark.parametrize(
    ("free_mb", "words", "is_error"),
    [
        (10_000, None, None),
        (300, "a release may have 512 MB (WORKER_PLUGIN_MAX_MB)", False),
        (20, "has 20 MB left: free some space, or set TMPDIR", True),
    ],
)
def test_full_temporary_directory_is_found(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    free_mb: int,
    words: str | None,
    is_error: bool | None,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, free_mb * MB))

    found = list(check_disk(settings))

    assert [finding.is_error for finding in found] == ([] if words is None else [is_error])
    assert words is None or words in found[0].text


def test_no_temporary_directory_at_all_is_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", none)

    [finding] = check_disk(settings)
    assert (finding.is_error, "set TMPDIR" in finding.text) == (True, True)


def test_package_store_that_cannot_be_written_is_found(settings: Settings, tmp_path: Path) -> None:
    # Given a store whose place is a file; one that is still to be made is no fault
    (tmp_path / "file").touch()
    assert list(check_disk(with_changes(settings, worker_package_store=str(tmp_path / "new/store")))) == []

    [finding] = check_disk(with_changes(settings, worker_package_store=str(tmp_path / "file")))

    assert finding.is_error
    assert "cannot be written: set WORKER_PACKAGE_STORE" in finding.text


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({}, None),
        ({"HTTP_PROXY": "http://proxy:3128"}, "lacks localhost and 127.0.0.1"),
        ({"https_proxy": "http://proxy:3128", "NO_PROXY": "localhost,.corp"}, "lacks 127.0.0.1:"),
        ({"HTTP_PROXY": "http://proxy:3128", "no_proxy": "127.0.0.1, localhost"}, None),
        ({"HTTP_PROXY": "http://proxy:3128", "no_proxy": "*"}, None),
    ],
)
def test_proxy_before_loopback_is_a_warning(
    settings: Settings, environ: dict[str, str], missing: str | None
) -> None:
    found = list(check_proxies(settings, environ))

    assert [finding.is_error for finding in found] == ([] if missing is None else [False])
    assert missing is None or missing in found[0].text


@pytest.mark.parametrize(
    ("direct", "is_warned"), [("", True), ("head.corp", False), (".corp", False), ("corp2", True)]
)
def test_proxy_before_ray_is_a_warning(settings: Settings, direct: str, is_warned: bool) -> None:
    environ = {
        "GRPC_PROXY": "http://proxy:3128",
        "RAY_grpc_enable_http_proxy": "1",
        "NO_PROXY": f"localhost,127.0.0.1,{direct}",
    }

    found = list(check_proxies(with_changes(settings, ray_address="ray://head.corp:10001"), environ))

    assert ["add head.corp to NO_PROXY" in finding.text for finding in found] == [True] * is_warned


class Handler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port whose server answers with this status and type."""
    status, kind = request.param

    def answer(_: Any, start: Any) -> list[bytes]:
        start(status, [("Content-Type", kind)])
        return [b"ok"]

    with make_server("127.0.0.1", 0, answer, handler_class=Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("taken", "is_warned"),
    [
        (("200 OK", "text/plain"), False),
        (("503 Service Unavailable", "text/plain"), False),
        (("404 Not Found", "text/html"), True),
        (("200 OK", "application/json"), True),
    ],
    indirect=["taken"],
)
def test_port_of_another_program_is_a_warning(settings: Settings, taken: int, is_warned: bool) -> None:
    found = list(check_port(with_changes(settings, worker_http_port=taken, worker_http_host="0.0.0.0")))

    assert ["set another one" in finding.text for finding in found] == [True] * is_warned


def test_free_port_is_no_finding(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    assert list(check_port(with_changes(settings, worker_http_port=port))) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"worker_plugin_access_token": "lesser"}, None),
        ({"worker_plugin_access_token": "own"}, "create one of lesser rights"),
        ({"synapse_host": "http://backend.example"}, "SYNAPSE_HOST is http://"),
        ({"synapse_agent_url": "http://agent.example:8000"}, "SYNAPSE_AGENT_URL is http://"),
        ({"synapse_host": "http://backend:8000"}, None),
        ({"synapse_host": "http://backend.default.svc"}, None),
        ({"synapse_host": "http://10.0.0.7:8000"}, None),
    ],
)
def test_tokens_that_others_may_read_are_a_warning(
    settings: Settings, changes: dict[str, str], words: str | None
) -> None:
    found = list(check_tokens(Settings.model_validate({**settings.model_dump(), **changes})))

    assert [finding.is_error for finding in found] == ([] if words is None else [False])
    assert words is None or words in found[0].text
