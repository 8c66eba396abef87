"""Where logs come from: the agents' clients, which are synchronous, asked beside the event loop."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from worker.logs.bookings import Beginning, Booking
from worker.platform import AgentClient, ClientConnectionError
from worker.platform.streams import AsyncLogTail
from worker.services import Services

QUIET_SECONDS: Final = 120.0
"""A job may print nothing for long; after this the agent is asked whether it still runs. (That a machine is
gone the kernel finds out within a minute.)"""

THREADS: Final = 8


class LogSource(Protocol):
    """Opens logs and knows how their jobs are. Raises `ClientError`."""

    async def tail(self, booking: Booking, beginning: Beginning) -> AsyncLogTail:
        """The log from its first line on."""
        ...

    async def status(self, booking: Booking, beginning: Beginning) -> str:
        """Ray's word for how the job is."""
        ...


class AgentLogs:
    """Implements `LogSource` with the agents of this process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="agent-logs")

    async def tail(self, booking: Booking, beginning: Beginning) -> AsyncLogTail:
        client = await self._client(beginning)
        return client.log_tail(booking.ray_job, QUIET_SECONDS, beginning.protocol)

    async def status(self, booking: Booking, beginning: Beginning) -> str:
        client = await self._client(beginning)
        loop = asyncio.get_running_loop()
        job = await loop.run_in_executor(self._threads, client.get_job, booking.ray_job)
        return str(job.get("status"))

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _client(self, beginning: Beginning) -> AgentClient:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._look_up, beginning.agent)

    def _look_up(self, agent: int | None) -> AgentClient:
        settings = self._services.settings
        wanted = agent if agent is not None else settings.worker_agent
        if wanted is None and settings.synapse_agent_url is None:
            raise ClientConnectionError("no agent is named, and none is configured (SYNAPSE_AGENT_URL)")
        client = self._services.agent(wanted or 0)
        if client is None:
            raise ClientConnectionError(f"agent {wanted} is not known or has no URL")
        return client
