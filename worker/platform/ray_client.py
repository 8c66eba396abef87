"""Ray's jobs, nodes, tasks and Serve applications, as an agent in front of a cluster shows them."""

from typing import Any, Protocol

from worker.platform import agent_requests as calls
from worker.platform.requests import Request


class Sender(Protocol):
    """What the mixin needs of the client that it is mixed into; `BaseClient` has it."""

    def _send(self, request: Request) -> Any: ...

    def _object(self, request: Request) -> dict[str, Any]: ...

    def _all(self, request: Request) -> dict[str, Any]: ...


class RayClientMixin:
    """Mix it into a `BaseClient`: `class RayClient(RayClientMixin, BaseClient)`.

    An id that could not be one is refused with `ValidationError` before anything is sent. Lists answer
    `{"results": [...]}`.
    """

    def get_job(self: Sender, pk: str) -> dict[str, Any]:
        """A Ray job."""
        return self._object(calls.get_job(pk))

    def list_jobs(self: Sender) -> dict[str, Any]:
        """All Ray jobs of the cluster."""
        return self._all(calls.list_jobs())

    def list_job_logs(self: Sender, pk: str) -> str:
        """All of a job's log so far."""
        text: str = self._send(calls.get_job_logs(pk))
        return text

    def stop_job(self: Sender, pk: str) -> dict[str, Any]:
        """Ask a running job to stop."""
        return self._object(calls.stop_job(pk))

    def get_node(self: Sender, pk: str) -> dict[str, Any]:
        """A node of the cluster."""
        return self._object(calls.get_node(pk))

    def list_nodes(self: Sender) -> dict[str, Any]:
        """All nodes of the cluster."""
        return self._all(calls.list_nodes())

    def get_task(self: Sender, pk: str) -> dict[str, Any]:
        """A Ray task."""
        return self._object(calls.get_task(pk))

    def list_tasks(self: Sender) -> dict[str, Any]:
        """All Ray tasks that the cluster remembers."""
        return self._all(calls.list_tasks())

    def get_serve_application(self: Sender, pk: str) -> dict[str, Any]:
        """A Ray Serve application by its name."""
        return self._object(calls.get_serve_application(pk))

    def list_serve_applications(self: Sender) -> dict[str, Any]:
        """All Ray Serve applications of the cluster."""
        return self._all(calls.list_serve_applications())

    def delete_serve_application(self: Sender, pk: str) -> None:
        """Delete a Ray Serve application."""
        self._send(calls.delete_serve_application(pk))
