"""Ray's jobs, nodes, tasks and Serve applications, as the agent of a cluster shows them."""

import re
import weakref
from collections.abc import Generator, Mapping
from typing import Any

import httpx

from shared.messages import JsonObject
from worker.platform.client import BaseClient
from worker.platform.errors import ValidationError
from worker.platform.requests import Request, path_segment
from worker.platform.streams.connection import StreamTarget, websocket_url
from worker.platform.streams.parser import StreamLimits, StreamProtocol, validate_timeout
from worker.platform.streams.sync_tail import LogStreams
from worker.platform.streams.tail import AsyncLogTail

LOG_TIMEOUT_SECONDS = 10.0
"""Default of `stream_timeout` (the Ray client's document)."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_APPLICATION_NAME = re.compile(r"[A-Za-z0-9_@.-]{1,100}")


class RayClientMixin(BaseClient):
    """Adds Ray's calls to a client: `class RayClient(RayClientMixin)` or `(RayClientMixin, BaseClient)`.

    Methods, defaults and error statuses are those of the Ray client's document, paths and ids those of
    platform-api. Threads may share the client. An id that there cannot be is rejected before anything is
    sent. Closing the client, or dropping the last reference to it, closes the logs that it follows.
    """

    def __init__(
        self,
        base_url: str,
        timeout: Mapping[str, float] | None = None,
        *,
        stream_limits: StreamLimits | None = None,
        **more: Any,
    ) -> None:
        """Connect to nothing yet.

        Args:
            base_url: `http(s)://host[:port][/path]`.
            timeout: Seconds, as in `BaseClient`.
            stream_limits: Limits of every log.
            **more: Further arguments of `BaseClient`.

        Raises:
            ValueError: An argument is unusable; the message does not show its value.
        """
        super().__init__(base_url, timeout, **more)
        self.stream_limits = stream_limits or StreamLimits()
        self._streams = LogStreams(self.stream_limits.queue_size)
        weakref.finalize(self, _close_all, self._streams, self._http)

    def close(self) -> None:
        """Close the logs that are followed and all connections."""
        self._streams.close()
        super().close()

    def get_job(self, pk: str) -> JsonObject:
        """Fetch a Ray job.

        Args:
            pk: Its id.

        Returns:
            The job, with its `status`.

        Raises:
            ClientError: 404 for an unknown job.
        """
        return self._send_for_object(_get(f"jobs/{_id(pk, 'job id')}/"))

    def list_jobs(self) -> JsonObject:
        """Fetch all Ray jobs of the cluster.

        Returns:
            `{"results": [...]}`

        Raises:
            ClientError: The call failed.
        """
        return self._collect_pages(_list("jobs/"))

    def list_job_logs(self, pk: str) -> str:
        """Fetch the log of a Ray job so far.

        Args:
            pk: The job's id.

        Returns:
            The whole text.

        Raises:
            ClientError: 404 for an unknown job.
        """
        text: str = self._send(Request("GET", _log_path(pk), retryable=True, expect="text"))
        return text

    def stop_job(self, pk: str) -> JsonObject:
        """Ask a running job to stop. The request is sent once; the job ends a moment later.

        Args:
            pk: The job's id.

        Returns:
            The agent's response, with a `status`.

        Raises:
            ClientError: 404 for an unknown job.
            ValidationError: 400, the job has already ended.
        """
        response = self._send_for_object(Request("POST", f"jobs/{_id(pk, 'job id')}/stop/"))
        if response.get("stopped") is False:
            detail = "the job has already ended"
            raise ValidationError(f"400 Bad Request: {detail}", 400, detail)
        return {"status": "STOPPING", **response}

    def tail_job_logs(
        self, pk: str, stream_timeout: float = LOG_TIMEOUT_SECONDS, protocol: StreamProtocol = "stream"
    ) -> Generator[str]:
        """Follow a job's log from its beginning until it ends.

        "stream" and "websocket" connect in this call, so that a caller can try one and fall back to the
        other; "auto" connects when the first line is asked for. Closing the generator, leaving it early, or
        forgetting it closes the connection.

        Args:
            pk: The job's id.
            stream_timeout: The longest wait in seconds, for the response and then for the next data.
            protocol: "stream" (HTTP), "websocket", or "auto": a websocket, and HTTP if that fails before the
                first line.

        Yields:
            The lines, without their ends.

        Raises:
            ValidationError: 400, an argument is wrong.
            ClientError: In the call when it connects, and while iterating, after the lines before the
                failure: 404 for an unknown job, 408 for a timeout, 429 for a limit, 500 for an error of the
                stream or a closed client, 503 for a lost connection.
        """
        tail = self.log_tail(pk, stream_timeout, protocol)
        if protocol == "auto":
            return self._follow(tail, announce=False)
        lines = self._follow(tail, announce=True)
        # It has begun, so that forgetting it closes the connection.
        next(lines)
        return lines

    def websocket_tail_job_logs(self, pk: str, stream_timeout: float = LOG_TIMEOUT_SECONDS) -> Generator[str]:
        """Follow a job's log over a websocket, which has the least delay.

        Args:
            pk: As in `tail_job_logs`.
            stream_timeout: As in `tail_job_logs`.

        Yields:
            As `tail_job_logs`.

        Raises:
            ClientError: As `tail_job_logs`.
        """
        return self.tail_job_logs(pk, stream_timeout, "websocket")

    def stream_tail_job_logs(self, pk: str, stream_timeout: float = LOG_TIMEOUT_SECONDS) -> Generator[str]:
        """Follow a job's log over HTTP's chunked transfer, which passes every proxy.

        Args:
            pk: As in `tail_job_logs`.
            stream_timeout: As in `tail_job_logs`.

        Yields:
            As `tail_job_logs`.

        Raises:
            ClientError: As `tail_job_logs`.
        """
        return self.tail_job_logs(pk, stream_timeout, "stream")

    def log_tail(
        self, pk: str, stream_timeout: float = LOG_TIMEOUT_SECONDS, protocol: StreamProtocol = "auto"
    ) -> AsyncLogTail:
        """Follow a job's log on the caller's event loop. `await tail.open()` connects before the first line.

        Args:
            pk: The job's id.
            stream_timeout: As in `tail_job_logs`.
            protocol: As in `tail_job_logs`.

        Returns:
            The log. It does not use this client, which may be closed before.

        Raises:
            ValidationError: 400, an argument is wrong.
        """
        return AsyncLogTail(self._log_target(pk, stream_timeout), protocol)

    def get_node(self, pk: str) -> JsonObject:
        """Fetch a node of the cluster.

        Args:
            pk: Its id.

        Returns:
            The node.

        Raises:
            ClientError: 404 for an unknown node.
        """
        return self._send_for_object(_get(f"nodes/{_id(pk, 'node id')}/"))

    def list_nodes(self) -> JsonObject:
        """Fetch all nodes of the cluster.

        Returns:
            `{"results": [...]}`

        Raises:
            ClientError: The call failed.
        """
        return self._collect_pages(_list("nodes/"))

    def get_task(self, pk: str) -> JsonObject:
        """Fetch a Ray task.

        Args:
            pk: Its id.

        Returns:
            The task.

        Raises:
            ClientError: 404 for an unknown task.
        """
        return self._send_for_object(_get(f"tasks/{_id(pk, 'task id')}/"))

    def list_tasks(self) -> JsonObject:
        """Fetch the Ray tasks that the cluster still has records of.

        Returns:
            `{"results": [...]}`

        Raises:
            ClientError: The call failed.
        """
        return self._collect_pages(_list("tasks/"))

    def get_serve_application(self, pk: str) -> JsonObject:
        """Fetch a Ray Serve application.

        Args:
            pk: Its name.

        Returns:
            The application, with its `name` and `status`.

        Raises:
            ClientError: 404 for an unknown application.
        """
        return self._send_for_object(_get(_application_path(pk)))

    def list_serve_applications(self) -> JsonObject:
        """Fetch all Ray Serve applications of the cluster.

        Returns:
            `{"results": [...]}`

        Raises:
            ClientError: The call failed.
        """
        return self._collect_pages(_list("serve_applications/"))

    def delete_serve_application(self, pk: str) -> None:
        """Delete a Ray Serve application. The request is sent once.

        Args:
            pk: Its name.

        Raises:
            ClientError: 404 for an unknown application.
        """
        self._send(Request("DELETE", _application_path(pk), expect="none"))

    def _log_target(self, pk: str, stream_timeout: float) -> StreamTarget:
        path = _log_path(pk)
        return StreamTarget(
            stream_url=self._base.join(f"{path}stream/"),
            websocket_url=websocket_url(self._base.join(path)),
            headers=dict(self._http.headers),
            connect_timeout=self._timeouts.connect,
            idle_timeout=validate_timeout(stream_timeout),
            limits=self.stream_limits,
        )

    # A generator of its own: the caller's arguments are checked at once, and it keeps the client alive.
    def _follow(self, tail: AsyncLogTail, *, announce: bool) -> Generator[str]:
        yield from self._streams.follow(tail, announce=announce)


def _get(path: str) -> Request:
    return Request("GET", path, retryable=True)


def _list(path: str) -> Request:
    return Request("GET", path, retryable=True, expect="list")


def _id(pk: str, name: str) -> str:
    return path_segment(pk, name, _ID)


def _log_path(pk: str) -> str:
    return f"jobs/{_id(pk, 'job id')}/logs/"


def _application_path(pk: str) -> str:
    return f"serve_applications/{path_segment(pk, 'application name', _APPLICATION_NAME)}/"


def _close_all(streams: LogStreams, http: httpx.Client) -> None:
    streams.close()
    http.close()
