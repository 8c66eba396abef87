"""Serve applications as the agent lists them, and their records in the backend."""

import asyncio

import httpx

NAME = "digits@1.10.0"


def listed(name: str = NAME, status: str = "RUNNING", route: str | None = "/abc") -> dict[str, object]:
    """An application in the agent's list."""
    return {"name": name, "status": status, "route_prefix": route}


async def statuses(backend: httpx.AsyncClient, **query: object) -> list[str]:
    """The statuses of the records that match `query`."""
    await asyncio.sleep(0.06)  # The backend does not ask the agent again within 50 ms.
    results = (await backend.get("/serve_applications/", params=query)).json()["results"]
    return [record["status"] for record in results]
