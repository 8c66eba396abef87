"""The client of an agent, the service in front of a Ray cluster."""

from collections.abc import Mapping
from typing import Any

import httpx

from worker.platform import agent_requests as calls
from worker.platform.base import BaseClient
from worker.platform.errors import MalformedResponseError
from worker.platform.ray_client import RayClientMixin
from worker.platform.redaction import register_secrets
from worker.platform.retries import RetryPolicy
from worker.platform.streams import StreamLimits


class AgentClient(RayClientMixin, BaseClient):
    """The agent at `base_url`, as the owner of `agent_token`, on behalf of a user where one is named."""

    def __init__(
        self,
        base_url: str,
        agent_token: str,
        *,
        user_token: str | None = None,
        tenant: str | None = None,
        timeout: Mapping[str, float] | None = None,
        transport: httpx.BaseTransport | None = None,
        retries: RetryPolicy | None = None,
        stream_limits: StreamLimits | None = None,
    ) -> None:
        register_secrets(token for token in (agent_token, user_token) if token)
        headers = {"Authorization": agent_token}
        if user_token:
            headers["SYNAPSE-User"] = f"Token {user_token}"
        if tenant:
            headers["SYNAPSE-Tenant"] = f"Token {tenant}"
        super().__init__(
            base_url,
            timeout,
            headers=headers,
            transport=transport,
            retries=retries,
            stream_limits=stream_limits,
        )

    def health(self) -> None:
        """Return when the agent is well, raise when it is not."""
        self._send(calls.health())

    def check_feasibility(
        self,
        kind: str,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        memory_bytes: int | None = None,
        replicas: int = 1,
        metadata: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Ask once whether the cluster has room: `{"allowed": bool, "reasons": [...]}` and more."""
        asked = {
            "kind": kind,
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "memory_bytes": memory_bytes,
            "replicas": replicas,
            "metadata": dict(metadata or {}),
        }
        verdict: dict[str, Any] = {"reasons": [], **self._object(calls.check_feasibility(asked))}
        # Anything but a real yes or no must not open the gate, nor close it with a wrong reason.
        if not isinstance(verdict.get("allowed"), bool) or not isinstance(verdict["reasons"], list):
            raise MalformedResponseError("malformed answer: not a verdict on feasibility")
        return verdict

    def get_cluster_resources(self, use_cache: bool = True) -> dict[str, Any]:
        """What the cluster has and what of it is free."""
        return self._object(calls.get_cluster_resources(use_cache))

    def get_policy(self) -> dict[str, Any]:
        """The limits that the agent holds deployments to."""
        return self._object(calls.get_policy())

    def update_policy(self, **limits: Any) -> dict[str, Any]:
        """Change limits such as `max_concurrent_serve_replicas`."""
        return self._object(calls.update_policy(limits))

    def gpu_status(self) -> dict[str, Any]:
        """GPU totals of the cluster."""
        return self._object(calls.gpu_status())
