"""The backend's Starlette application."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
from httpx_aiohttp import AiohttpTransport
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from shared import Message
from worker.sandbox.api import Api, refusal
from worker.sandbox.backend.entities import Entities, Releases
from worker.sandbox.backend.jobs import AgentFeed, Applications, Jobs
from worker.sandbox.backend.plugin_runs import PluginRuns
from worker.sandbox.backend.state import State

AUDITED_BODY_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class BackendConfig:
    """What the backend is told at start; tokens are not shown."""

    access_token: str = field(repr=False)
    plugin_token: str = field(repr=False)
    plugins_dir: Path
    files_dir: Path
    serve_url: str = ""
    agent: int = 1


def create_app(
    config: BackendConfig,
    state: State,
    publish: Callable[[Message], object],
    client: httpx.AsyncClient | None = None,
) -> Starlette:
    """The application; `client` speaks to the agent and to applications."""
    client = client or httpx.AsyncClient(
        transport=AiohttpTransport(limits=httpx.Limits(max_connections=1000), trust_env=False)
    )
    releases = Releases(state, config.plugins_dir)
    feed = AgentFeed(state, config.agent, client)
    api = Api(Gate(config).check, Audit(state).note)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(feed.run())
        async with client:
            yield
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    routes = [
        *Entities(state, releases).routes(api),
        *Jobs(state).routes(api),
        *Applications(state, feed).routes(api),
        *PluginRuns(state, releases, feed, client, publish, config.serve_url).routes(api),
        Mount("/files", StaticFiles(directory=config.files_dir)),
        api.nothing_else(),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


class Gate:
    """Two tokens: the worker's may do everything, plugin code's may read what is not secret."""

    def __init__(self, config: BackendConfig) -> None:
        self._full = f"Token {config.access_token}".encode()
        self._lesser = f"Token {config.plugin_token}".encode()

    def check(self, request: Request) -> None:
        """Raise 401 without a known token, 403 where the lesser one does not reach."""
        token = request.headers.get("Synapse-Access-Token", "").encode()
        if hmac.compare_digest(token, self._full):
            return
        if not hmac.compare_digest(token, self._lesser):
            raise refusal(401, "Invalid access token.")
        if request.method != "GET" or request.url.path.startswith("/agents/"):
            raise refusal(403, "You do not have permission to perform this action.")


class Audit:
    """Every request in the table `requests`, for whoever checks afterwards what was asked."""

    def __init__(self, state: State) -> None:
        self._state = state

    def note(self, request: Request, body: bytes, status: int) -> None:
        """Book one request with its answer's status."""
        query = f"?{request.url.query}" if request.url.query else ""
        text = body[:AUDITED_BODY_BYTES].decode(errors="replace")
        self._state.execute(
            "INSERT INTO requests VALUES (?, ?, ?, ?, ?)",
            time.time(),
            request.method,
            request.url.path + query,
            status,
            text,
        )
