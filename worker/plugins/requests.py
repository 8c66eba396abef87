"""What crosses from the worker to a plugin's host as JSON, and the host itself."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from worker.plugins.store import Release


@dataclass(frozen=True)
class ClientAccess:
    """What plugin code's own clients are made from. `token` is WORKER_PLUGIN_ACCESS_TOKEN, never another."""

    host: str
    token: str | None = field(default=None, repr=False)
    tenant: str | None = None
    agent_url: str | None = None


@dataclass(frozen=True)
class ActionRequest:
    """One action of one release. `env` is what the author reads in `ctx.env`.

    `runtime_env` is Ray's: the host fills in the release's package, requirements and environment.
    """

    release: str
    action: str
    entrypoint: str
    params: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    job: str | None = None
    language: str = "en"
    serve_options: dict[str, Any] = field(default_factory=dict)
    required_resources: dict[str, Any] = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=dict)
    clients: ClientAccess | None = None

    def to_json(self) -> str:
        """As text; `from_json` is its inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ActionRequest":
        """The request that `to_json` wrote."""
        fields = json.loads(text)
        access = fields.pop("clients", None)
        return cls(**fields, clients=ClientAccess(**access) if access else None)


def request_for(
    release: Release,
    action: str,
    params: dict[str, Any],
    clients: ClientAccess,
    *,
    job: str | None = None,
    language: str = "en",
) -> ActionRequest:
    """The request for an action that the release declares; `ReleaseInvalidError` when it does not."""
    declared = release.action(action)
    return ActionRequest(
        release=release.name,
        action=action,
        entrypoint=declared.entrypoint,
        params=params,
        env={**release.config.env, **run_settings(release, clients.host)},
        job=job,
        language=language,
        serve_options=declared.serve_options,
        required_resources=declared.required_resources,
        clients=clients,
    )


def run_settings(release: Release, host: str) -> dict[str, str]:
    """The settings that every run of the release sees. Nothing in them differs between two runs."""
    return {
        "SYNAPSE_PLUGIN_RELEASE_CODE": release.name,
        "SYNAPSE_PLUGIN_RELEASE_CHECKSUM": release.checksum,
        "SYNAPSE_HOST": host,
    }


class PluginHost(Protocol):
    """Runs an *operation* of a release's entrypoint. What crosses is JSON, both ways.

    Both calls raise `PluginCallError` when the author's code raised, `PluginTimeoutError`, and
    `PluginHostUnavailableError` when the host cannot be reached. Safe for threads.
    """

    def call(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        """One-off work: plan a deployment, submit it, check parameters."""

    def call_batch(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        """Hot work: the release stays loaded between calls."""

    def pin(self, releases: Iterable[Release]) -> None:
        """Keep the packages of these from expiring; to be called every few minutes."""

    def close(self) -> None:
        """Give everything back."""
