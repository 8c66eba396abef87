"""A backend in this process, on a real state file, with fakes of the agent and of Ray Serve."""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared import Message
from worker.sandbox.backend.app import BackendConfig, create_app
from worker.sandbox.backend.state import State
from worker.sandbox.seed import seed_agent

WORKER_TOKEN, PLUGIN_TOKEN = "full-token", "lesser-token"


@dataclass
class ExternalServices:
    """The responses of the agent and of Ray Serve; the calls and messages that the backend sent."""

    applications: list[dict[str, Any]] = field(default_factory=list)
    agent_is_up: bool = True
    inference: httpx.Response = field(default_factory=lambda: httpx.Response(200, json={"digit": 7}))
    calls: list[httpx.Request] = field(default_factory=list)
    published: list[Message] = field(default_factory=list)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.host == "agent":
            assert request.headers["Authorization"] == "agent-token"
            return (
                httpx.Response(200, json={"results": self.applications})
                if self.agent_is_up
                else httpx.Response(503)
            )
        self.calls.append(request)
        return self.inference


@pytest.fixture
def services() -> ExternalServices:
    return ExternalServices()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State(tmp_path / "backend.sqlite3") as state:
        seed_agent(state, url="http://agent", token="agent-token")
        yield state


@pytest.fixture
def plugins_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    for version in ("1.9.0", "1.10.0"):
        release = folder / f"digits@{version}"
        release.mkdir(parents=True)
        config = {
            "code": "digits",
            "version": version,
            "actions": {"inference": {"entrypoint": "plugin.serve.Digits"}},
        }
        (release / "config.yaml").write_text(json.dumps(config))
    return folder


@pytest.fixture
async def backend(
    state: State, services: ExternalServices, plugins_dir: Path, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    files = tmp_path / "files"
    files.mkdir()
    (files / "one.json").write_text('{"label": 1}')
    config = BackendConfig(WORKER_TOKEN, PLUGIN_TOKEN, plugins_dir, files, serve_url="http://serve")
    async with httpx.AsyncClient(transport=httpx.MockTransport(services.answer)) as upstream:
        app = create_app(config, state, services.published.append, upstream)
        headers = {"Synapse-Access-Token": f"Token {WORKER_TOKEN}"}
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://backend", headers=headers
        ) as client:
            yield client


@pytest.fixture
def plugin_headers() -> dict[str, str]:
    """The headers of requests from plugin code."""
    return {"Synapse-Access-Token": f"Token {PLUGIN_TOKEN}"}
