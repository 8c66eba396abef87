"""Keeps the status of serve applications current by asking the agent, as the platform does."""

import asyncio
import contextlib
import time
from typing import Final

import httpx

from shared.statuses import ServeApplicationStatus
from worker.sandbox.backend.state import Row, State

INTERVAL_SECONDS: Final = 0.5
FRESH_SECONDS: Final = 0.05
# Records in these statuses may change without anybody asking for them.
UNSETTLED: Final = ("NOT_STARTED", "DEPLOYING", "DELETING", "UNHEALTHY")


class AgentFeed:
    """What the agent says about its applications; `agent` is the id of its record."""

    def __init__(self, state: State, agent: int, client: httpx.AsyncClient) -> None:
        self._state, self._agent, self._client = state, agent, client
        self._applications: dict[str, Row] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed = 0.0

    def route_prefix(self, application: str) -> str | None:
        """Where the cluster serves an application, as far as the agent has said."""
        return self._applications.get(application, {}).get("route_prefix")

    async def refresh(self) -> None:
        """Bring all records up to date; callers that come at the same time share one question."""
        if time.monotonic() - self._refreshed < FRESH_SECONDS:
            self._write()  # a record may be younger than the news
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.shield(self._refreshing)

    async def run(self) -> None:
        """Keep unsettled records current for as long as the backend lives."""
        unsettled = ", ".join(f"'{status}'" for status in UNSETTLED)
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            if self._state.value(f"SELECT 1 FROM serve_applications WHERE status IN ({unsettled})"):  # noqa: S608
                await self.refresh()

    async def _refresh(self) -> None:
        agent = self._state.row("SELECT url, token FROM agents WHERE id = ?", self._agent)
        if agent is None or agent["url"] is None:
            return
        # An agent that is away says nothing about its applications.
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            response = await self._client.get(
                f"{agent['url']}/serve_applications/",
                headers={"Authorization": agent["token"] or ""},
                timeout=5,
            )
            found = response.raise_for_status().json()["results"]
            self._applications = {application["name"]: application for application in found}
            self._write()
            self._refreshed = time.monotonic()

    def _write(self) -> None:
        records = self._state.rows(
            "SELECT serve_applications.* FROM serve_applications JOIN jobs ON jobs.id = job WHERE agent = ?",
            self._agent,
        )
        for record in records:
            application = self._applications.get(record["application"])
            if application is not None:
                status = application["status"]
            elif record["seen"]:
                status = ServeApplicationStatus.UNAVAILABLE
            else:
                continue
            if record["status"] != status or not record["seen"]:
                self._state.update("serve_applications", record["id"], {"status": str(status), "seen": 1})
