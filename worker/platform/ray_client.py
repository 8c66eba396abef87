"""Ray's jobs, nodes, tasks and Serve applications, as an agent in front of a cluster shows them."""

import weakref
from collections.abc import Generator, Mapping
from typing import Any

import httpx

from worker.platform import agent
from worker.platform.client import BaseClient
from worker.platform.errors import ValidationError
from worker.platform.streams.connection import StreamTarget, websocket_url
from worker.platform.streams.parser import StreamLimits, StreamProtocol, validate_timeout
from worker.platform.streams.sync_tail import LogStreams
from worker.platform.streams.tail import AsyncLogTail

LOG_TIMEOUT_SECONDS = 10.0
"""Seconds of `stream_timeout`."""


class RayClientMixin(BaseClient):
    """Extends a client: `class RayClient(RayClientMixin)` or `(RayClientMixin, BaseClient)`, for all threads.

    An id that could not be one is refused with `ValidationError` before anything is sent. Lists answer
    `{"results": [...]}`. Closing the client, or forgetting it, closes the logs that it follows.
    """

    def __init__(
        self,
        base_url: str,
        timeout: Mapping[str, float] | None = None,
        *,
        stream_limits: StreamLimits | None = None,
        **more: Any,
    ) -> None:
        super().__init__(base_url, timeout, **more)
        self.stream_limits = stream_limits or StreamLimits()
        self._streams = LogStreams(self.stream_limits.queue_size)
        weakref.finalize(self, _close_all, self._streams, self._http)

    def close(self) -> None:
        """Close the logs that are followed, then give the connections back."""
        self._streams.close()
        super().close()

    def get_job(self, pk: str) -> dict[str, Any]:
        """A Ray job."""
        return self._send_for_object(agent.get_job(pk))

    def list_jobs(self) -> dict[str, Any]:
        """All Ray jobs of the cluster."""
        return self._collect_pages(agent.list_jobs())

    def list_job_logs(self, pk: str) -> str:
        """All of a job's log so far."""
        text: str = self._send(agent.get_job_logs(pk))
        return text

    def stop_job(self, pk: str) -> dict[str, Any]:
        """Ask a running job to stop; its end comes a moment later. 400 where it has ended already."""
        answer = self._send_for_object(agent.stop_job(pk))
        if answer.get("stopped") is False:
            detail = "the job has already ended"
            raise ValidationError(f"400 Bad Request: {detail}", 400, detail)
        return {"status": "STOPPING", **answer}

    def tail_job_logs(
        self, pk: str, stream_timeout: float = LOG_TIMEOUT_SECONDS, protocol: StreamProtocol = "stream"
    ) -> Generator[str]:
        """The lines of a job's log, from its beginning until it ends.

        `stream_timeout` is the longest wait in seconds, for an answer and then between data. `protocol` is
        "stream" (HTTP), "websocket", or "auto": a websocket, and HTTP where that fails before the first line.
        """
        return self._follow(self.log_tail(pk, stream_timeout, protocol))

    def websocket_tail_job_logs(self, pk: str, stream_timeout: float = LOG_TIMEOUT_SECONDS) -> Generator[str]:
        """The same over a websocket, which is quickest."""
        return self.tail_job_logs(pk, stream_timeout, "websocket")

    def stream_tail_job_logs(self, pk: str, stream_timeout: float = LOG_TIMEOUT_SECONDS) -> Generator[str]:
        """The same over HTTP's chunked transfer, which passes everywhere."""
        return self.tail_job_logs(pk, stream_timeout, "stream")

    def get_node(self, pk: str) -> dict[str, Any]:
        """A node of the cluster."""
        return self._send_for_object(agent.get_node(pk))

    def list_nodes(self) -> dict[str, Any]:
        """All nodes of the cluster."""
        return self._collect_pages(agent.list_nodes())

    def get_task(self, pk: str) -> dict[str, Any]:
        """A Ray task."""
        return self._send_for_object(agent.get_task(pk))

    def list_tasks(self) -> dict[str, Any]:
        """All Ray tasks that the cluster remembers."""
        return self._collect_pages(agent.list_tasks())

    def get_serve_application(self, pk: str) -> dict[str, Any]:
        """A Ray Serve application by its name."""
        return self._send_for_object(agent.get_serve_application(pk))

    def list_serve_applications(self) -> dict[str, Any]:
        """All Ray Serve applications of the cluster."""
        return self._collect_pages(agent.list_serve_applications())

    def delete_serve_application(self, pk: str) -> None:
        """Delete a Ray Serve application."""
        self._send(agent.delete_serve_application(pk))

    def log_tail(
        self, pk: str, stream_timeout: float = LOG_TIMEOUT_SECONDS, protocol: StreamProtocol = "auto"
    ) -> AsyncLogTail:
        """The same log for an event loop. It needs this client for its making only, not while it is read."""
        return AsyncLogTail(self._log_target(pk, stream_timeout), protocol)

    def _log_target(self, pk: str, stream_timeout: float) -> StreamTarget:
        path = agent.get_job_logs(pk).path
        return StreamTarget(
            stream_url=self._base.join(f"{path}stream/"),
            websocket_url=websocket_url(self._base.join(path)),
            headers=dict(self._http.headers),
            connect_timeout=self._timeouts.connect,
            idle_timeout=validate_timeout(stream_timeout),
            limits=self.stream_limits,
        )

    # A generator of its own: the caller's arguments are checked at once, and it keeps the client alive.
    def _follow(self, tail: AsyncLogTail) -> Generator[str]:
        yield from self._streams.follow(tail)


def _close_all(streams: LogStreams, http: httpx.Client) -> None:
    streams.close()
    http.close()
