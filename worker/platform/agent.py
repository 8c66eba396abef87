"""The client of an agent, the platform's HTTP service in front of a Ray cluster."""

from collections.abc import Mapping
from typing import Any

import httpx

from shared.messages import JsonObject
from worker.platform.client import BaseClient
from worker.platform.errors import MalformedResponseError, shorten
from worker.platform.ray_client import RayClientMixin
from worker.platform.redaction import clean_value, register_secrets
from worker.platform.requests import Json, Request, encode_query
from worker.platform.retries import RetryPolicy
from worker.platform.streams import StreamLimits

MAX_REASONS_CHARS = 2_000
"""Of an agent's reasons in what users read."""


class AgentClient(RayClientMixin, BaseClient):
    """The agent of one Ray cluster; its calls and headers are those of platform-api."""

    service = "agent"

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
        """Connect to nothing yet; mask the tokens in this process from now on.

        Args:
            base_url: `http(s)://host[:port][/path]`.
            agent_token: The agent's own token.
            user_token: The token of the user on whose behalf the calls are made.
            tenant: The user's tenant.
            timeout: Seconds, as in `BaseClient`.
            transport: Replaces the network in tests. Logs that are followed do not use it.
            retries: How often a request that may be sent again is sent.
            stream_limits: Limits of every log that is followed.

        Raises:
            ValueError: An argument is unusable; the message does not show its value.
        """
        register_secrets((token for token in (agent_token, user_token) if token), owner=self)
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
        """Check that the agent is healthy.

        Raises:
            ClientError: It is not, or cannot be reached.
        """
        self._send(Request("GET", "health/", retryable=True, expect="none"))

    def check_feasibility(
        self,
        kind: str,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        memory_bytes: int | None = None,
        replicas: int = 1,
        metadata: Mapping[str, Json] | None = None,
    ) -> JsonObject:
        """Ask whether the cluster has the capacity. The request is sent once (the contract, on the gate).

        Args:
            kind: "serve", "job" or "task".
            num_cpus: CPUs of one replica.
            num_gpus: GPUs of one replica.
            memory_bytes: Memory of one replica.
            replicas: Number of replicas.
            metadata: `plugin_code` and `agent`.

        Returns:
            `{"allowed": bool, "reasons": [...]}` and more.

        Raises:
            ClientError: The call failed.
            MalformedResponseError: The response says neither yes nor no.
        """
        body = {
            "kind": kind,
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "memory_bytes": memory_bytes,
            "replicas": replicas,
            "metadata": dict(metadata or {}),
        }
        response = self._send_for_object(Request("POST", "resources/feasibility/", json=body))
        verdict: JsonObject = {"reasons": [], **response}
        if verdict["reasons"] is None:
            verdict["reasons"] = []
        # Only a boolean may open the gate, and only a list can be shown as the reasons of a closed one.
        if not isinstance(verdict.get("allowed"), bool) or not isinstance(verdict["reasons"], list):
            raise MalformedResponseError("malformed answer: not a verdict on feasibility")
        return verdict

    def get_cluster_resources(self, use_cache: bool = True) -> JsonObject:
        """Fetch what the cluster has and what of it is free.

        Args:
            use_cache: Whether the agent may answer with its last measurement.

        Returns:
            `cpu`, `memory`, `gpu`, `nodes` and so on.

        Raises:
            ClientError: The call failed.
        """
        query = encode_query({"use_cache": use_cache})
        return self._send_for_object(Request("GET", "resources/cluster/", query, retryable=True))

    def get_policy(self) -> JsonObject:
        """Fetch the limits that the agent sets for deployments.

        Returns:
            Limits by name.

        Raises:
            ClientError: The call failed.
        """
        return self._send_for_object(Request("GET", "resources/policy/", retryable=True))

    def update_policy(self, **limits: Json) -> JsonObject:
        """Change limits. The request is sent once.

        Args:
            **limits: New values by name, such as `max_concurrent_serve_replicas`.

        Returns:
            The limits.

        Raises:
            ClientError: The call failed.
        """
        return self._send_for_object(Request("PATCH", "resources/policy/", json=dict(limits)))

    def gpu_status(self) -> JsonObject:
        """Fetch the GPU totals of the cluster.

        Returns:
            The totals.

        Raises:
            ClientError: The call failed.
        """
        return self._send_for_object(Request("GET", "gpu_status/", retryable=True))


def denial_reasons(
    agent_client: Any,
    *,
    app_name: str,
    agent: int | str | None,
    resources: Mapping[str, Any],
    replicas: int,
) -> list[Any] | None:
    """Ask the agent once whether the cluster has room for an application (contract: the gate's request).

    Args:
        agent_client: The client of the cluster's agent.
        app_name: Name of the Serve application.
        agent: Id of the agent.
        resources: `num_cpus` (1 by default), `num_gpus` (0) and `memory` (bytes) of one replica.
        replicas: Their number.

    Returns:
        None where the agent allows it, else its reasons, shortened and without secrets.

    Raises:
        ClientError: The agent cannot be asked.
        MalformedResponseError: Its answer says neither yes nor no.
    """
    cpus, gpus, memory = (resources.get(name) for name in ("num_cpus", "num_gpus", "memory"))
    answer: object = agent_client.check_feasibility(
        kind="serve",
        num_cpus=1.0 if cpus is None else float(cpus),
        num_gpus=0.0 if gpus is None else float(gpus),
        memory_bytes=None if memory is None else int(memory),
        replicas=replicas,
        metadata={"plugin_code": app_name, "agent": agent},
    )
    if not isinstance(answer, dict) or not isinstance(answer.get("allowed"), bool):
        raise MalformedResponseError("the agent's answer has no allowed: true or false")
    if answer["allowed"]:
        return None
    reasons = answer.get("reasons") or []
    return _shortened(reasons if isinstance(reasons, list) else [reasons])


def _shortened(reasons: list[Any]) -> list[Any]:
    """The reasons without secrets; the one that makes the list too long is cut, later ones are omitted."""
    shown: list[Any] = []
    for reason in map(clean_value, reasons):
        left = MAX_REASONS_CHARS - len(str(shown))
        if len(repr(reason)) > left:
            text = reason if isinstance(reason, str) else repr(reason)
            return [*shown, shorten(text, max(left, 1))]
        shown.append(reason)
    return shown
