"""A backend in this process, over a real state file, with an agent and a Ray Serve that tests speak for."""

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

ACCESS, PLUGIN = "full-token", "lesser-token"


@dataclass
class Outside:
    """What the agent lists, what Serve answers, and what was published and asked."""

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
def outside() -> Outside:
    return Outside()


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
    state: State, outside: Outside, plugins_dir: Path, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    files = tmp_path / "files"
    files.mkdir()
    (files / "one.json").write_text('{"label": 1}')
    config = BackendConfig(ACCESS, PLUGIN, plugins_dir, files, serve_url="http://serve")
    async with httpx.AsyncClient(transport=httpx.MockTransport(outside.answer)) as upstream:
        app = create_app(config, state, outside.published.append, upstream)
        headers = {"Synapse-Access-Token": f"Token {ACCESS}"}
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://backend", headers=headers
        ) as client:
            yield client


@pytest.fixture
def lesser() -> dict[str, str]:
    """Headers of plugin code's own client."""
    return {"Synapse-Access-Token": f"Token {PLUGIN}"}
