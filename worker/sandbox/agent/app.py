"""The agent's Starlette application."""

import contextlib
import hmac
from collections.abc import AsyncIterator

import httpx
from httpx_aiohttp import AiohttpTransport
from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from worker.sandbox.agent.cluster import Cluster
from worker.sandbox.agent.dashboard import Dashboard
from worker.sandbox.agent.logs import JobLogs
from worker.sandbox.agent.resources import Resources
from worker.sandbox.http import Api, refusal


def dashboard_client(url: str, token: str) -> httpx.AsyncClient:
    """Speaks to Ray's dashboard at `url`."""
    return httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {token}"},
        timeout=15,
        transport=AiohttpTransport(trust_env=False),
    )


def create_app(token: str, client: httpx.AsyncClient) -> Starlette:
    """The application; `client` speaks to Ray's dashboard, `token` is what callers must show."""
    expected = token.encode()

    def authorise(connection: HTTPConnection) -> None:
        if not hmac.compare_digest(connection.headers.get("Authorization", "").encode(), expected):
            raise refusal(401, "Invalid agent token.")

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    api = Api(authorise)
    dashboard = Dashboard(client)
    routes = [
        *Cluster(dashboard).routes(api),
        *JobLogs(dashboard, authorise).routes(api),
        *Resources(dashboard).routes(api),
        api.nothing_else(),
    ]
    return Starlette(routes=routes, lifespan=lifespan)
