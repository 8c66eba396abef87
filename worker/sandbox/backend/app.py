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

from worker.sandbox.api import Api, api_error
from worker.sandbox.backend.entities import Entities, Releases
from worker.sandbox.backend.jobs import Applications, ApplicationSync, Jobs
from worker.sandbox.backend.plugin_runs import PluginRuns
from worker.sandbox.backend.state import State

MAX_RECORDED_BODY_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class BackendConfig:
    """The settings of the backend; its `repr` hides the tokens."""

    access_token: str = field(repr=False)
    plugin_token: str = field(repr=False)
    plugins_dir: Path
    files_dir: Path
    serve_url: str = ""
    agent: int = 1


def create_app(
    config: BackendConfig,
    state: State,
    publish: Callable[..., object],
    client: httpx.AsyncClient | None = None,
) -> Starlette:
    """The application; `client` calls the agent and the Serve applications."""
    client = client or httpx.AsyncClient(
        transport=AiohttpTransport(limits=httpx.Limits(max_connections=1000), trust_env=False)
    )
    releases = Releases(state, config.plugins_dir)
    sync = ApplicationSync(state, config.agent, client)
    api = Api(TokenCheck(config).check, RequestLog(state).record)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        sync_task = asyncio.create_task(sync.run())
        async with client:
            yield
            sync_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sync_task

    routes = [
        *Entities(state, releases).routes(api),
        *Jobs(state).routes(api),
        *Applications(state, sync).routes(api),
        *PluginRuns(state, releases, sync, client, publish, config.serve_url, config.plugin_token).routes(
            api
        ),
        Mount("/files", StaticFiles(directory=config.files_dir)),
        api.not_found_route(),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


class TokenCheck:
    """Checks tokens: the worker's may do everything, that of plugin code may read what is not secret.

    An action that runs whole may also register what it has deployed.
    """

    def __init__(self, config: BackendConfig) -> None:
        self._worker_token = f"Token {config.access_token}".encode()
        self._plugin_token = f"Token {config.plugin_token}".encode()

    def check(self, request: Request) -> None:
        """Raise 401 without a known token, and 403 where plugin code has no permission."""
        # The published SDK's deployments send the token of a model's record as a user's token.
        sent = request.headers.get("Synapse-Access-Token") or request.headers.get("Authorization", "")
        token = sent.encode()
        if hmac.compare_digest(token, self._worker_token):
            return
        if not hmac.compare_digest(token, self._plugin_token):
            raise api_error(401, "Invalid access token.")
        call = request.method, request.url.path
        if call == ("POST", "/serve_applications/"):
            return
        if request.method != "GET" or request.url.path.startswith("/agents/"):
            raise api_error(403, "You do not have permission to perform this action.")


class RequestLog:
    """Keeps every request in the table `requests`, for tests that check them afterwards."""

    def __init__(self, state: State) -> None:
        self._state = state

    def record(self, request: Request, body: bytes, status: int) -> None:
        """Keep a request and the status of its response."""
        query = f"?{request.url.query}" if request.url.query else ""
        text = body[:MAX_RECORDED_BODY_BYTES].decode(errors="replace")
        self._state.execute(
            "INSERT INTO requests VALUES (?, ?, ?, ?, ?)",
            time.time(),
            request.method,
            request.url.path + query,
            status,
            text,
        )
