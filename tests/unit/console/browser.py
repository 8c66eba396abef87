"""A browser of the page in this process: it keeps cookies and follows no redirect."""

import asyncio
from typing import Any

import httpx
from starlette.types import ASGIApp


class Browser:
    """Sends requests to an ASGI application."""

    def __init__(self, app: ASGIApp, host: str = "127.0.0.1:8365", address: str = "127.0.0.1") -> None:
        """`host`: what it asks for; `address`: where it, or the proxy before it, is seen."""
        self._app = app
        self._base_url = f"http://{host}"
        self._address = address
        self.cookies: dict[str, str] = {}

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self._request("POST", path, **options)

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, client=(self._address, 50_000))
            async with httpx.AsyncClient(
                transport=transport, base_url=self._base_url, cookies=self.cookies
            ) as client:
                answer = await client.request(method, path, **options)
                self.cookies = dict(client.cookies)
                return answer

        return asyncio.run(send())
