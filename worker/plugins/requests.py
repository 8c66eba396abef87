"""What is sent from the worker to a plugin's host as JSON, and the host's interface."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from shared.messages import JsonObject

if TYPE_CHECKING:
    from worker.plugins.config import ReleaseConfig
    from worker.plugins.store import Release


WHOLE_RUN: Final = "whole_run"
"""The key of the answer to `plan` or `check_params` of an action that runs whole, and of the payload with
which a worker says that it can do that: older ones would go on with their own steps."""


ENTRIES: Final = ("dispatch", "run", "execute")
"""The methods with which a whole run begins: the first of them that there is."""


class Runner(StrEnum):
    """Whose program runs an action whole in its Ray job."""

    SDK = "sdk"
    WORKER = "worker"


@dataclass(frozen=True)
class ClientAccess:
    """The address and token of plugin code's own clients. `token` is only ever WORKER_PLUGIN_ACCESS_TOKEN."""

    host: str
    token: str | None = field(default=None, repr=False)
    tenant: str | None = None
    agent_url: str | None = None


@dataclass(frozen=True)
class ActionRequest:
    """A request to an action of a release. `env` is what the author reads in `ctx.env`.

    `runtime_env` is Ray's: the host adds the release's package, requirements and environment.
    """

    release: str
    action: str
    entrypoint: str
    params: JsonObject = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    job: str | None = None
    language: str = "en"
    serve_options: JsonObject = field(default_factory=dict)
    required_resources: JsonObject = field(default_factory=dict)
    runtime_env: JsonObject = field(default_factory=dict)
    clients: ClientAccess | None = None

    def to_json(self) -> str:
        """The request as JSON text; `from_json` is the inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ActionRequest":
        """The request in a text of `to_json`."""
        fields = json.loads(text)
        access = fields.pop("clients", None)
        return cls(**fields, clients=ClientAccess(**access) if access else None)


def request_for(
    release: "Release",
    action: str,
    params: JsonObject,
    clients: ClientAccess,
    *,
    job: str | None = None,
    language: str = "en",
) -> ActionRequest:
    """A request to an action; raises `ReleaseInvalidError` when the release does not declare it."""
    declared = release.action(action)
    serve_options, required_resources = action_options(release.config, action)
    return ActionRequest(
        release=release.name,
        action=action,
        entrypoint=declared.entrypoint,
        params=params,
        env={**release.config.env, **run_settings(release, clients.host)},
        job=job,
        language=language,
        serve_options=serve_options,
        required_resources=required_resources,
        clients=clients,
    )


def action_options(config: "ReleaseConfig", action: str) -> tuple[JsonObject, JsonObject]:
    """The `serve_options` and `required_resources` of an action; those it lacks are `inference`'s."""
    declared = config.actions[action]
    inference = config.actions.get("inference", declared)
    # A number of replicas there must not replace autoscaling that the action declares.
    resources = {key: value for key, value in inference.required_resources.items() if key != "num_replicas"}
    return (
        {**inference.serve_options, **declared.serve_options},
        {**resources, **declared.required_resources},
    )


MAX_ONGOING_REQUESTS: Final = 5
"""Requests that a replica takes at once, unless its author chooses another number: Serve's own default."""
MAX_BATCH_SIZE: Final = 10
"""Of a batch whose author gives no size: Serve's own default."""
MAX_AUTO_REPLICAS: Final = 100
"""Of `num_replicas: auto`: Serve's own number."""


def ongoing_requests(batch: Mapping[str, Any]) -> int:
    """Requests that a replica takes at once whose author has chosen a batch and not this number.

    These are two batches: with Serve's default none of more than 5 could be filled, and with one batch none
    could be filled while another is computed.
    """
    return max(MAX_ONGOING_REQUESTS, 2 * int(batch.get("max_batch_size", MAX_BATCH_SIZE)))


def requests_at_once(serve_options: Mapping[str, Any]) -> int:
    """Requests that all replicas of an application together take at once, as many as there may be."""
    scaling, replicas = serve_options.get("autoscaling_config"), serve_options.get("num_replicas")
    if replicas == "auto":
        replicas = MAX_AUTO_REPLICAS
    if isinstance(scaling, Mapping):
        replicas = scaling.get("max_replicas", replicas)
    ongoing = serve_options.get("max_ongoing_requests")
    if ongoing is None:
        batch = serve_options.get("batch")
        ongoing = ongoing_requests(batch) if batch else MAX_ONGOING_REQUESTS
    return int(ongoing) * int(replicas or 1)


DEPLOYED_ACTIONS: Final = ("deployment", "inference")
"""The actions of config.yaml that are deployments, the first of which counts."""


def folder_request(entrypoint: str, env: Mapping[str, str], folder: Path) -> ActionRequest | None:
    """The request that a worker would make of the release in this folder, for a direct `deploy()`.

    Its action is the one with this entrypoint, else the release's deployment. Settings in `env` win. The
    runtime environment lacks the release's package, for the folder itself is the Ray job's working directory.
    None without a config.yaml; raises `ReleaseInvalidError` when that or requirements.txt has mistakes.
    """
    from worker.plugins.config import parse_release_config
    from worker.plugins.requirements import installation

    path = folder / "config.yaml"
    if not path.is_file():
        return None
    config = parse_release_config(path.read_bytes())
    release = f"{config.code}@{config.version}"
    named = [name for name, declared in config.actions.items() if declared.entrypoint == entrypoint]
    action = next((name for name in [*named, *DEPLOYED_ACTIONS] if name in config.actions), None)
    serve_options, required_resources = action_options(config, action) if action else ({}, {})
    return ActionRequest(
        release=release,
        action=action or DEPLOYED_ACTIONS[0],
        entrypoint=entrypoint,
        env={**config.env, "SYNAPSE_PLUGIN_RELEASE_CODE": release, **env},
        serve_options=serve_options,
        required_resources=required_resources,
        runtime_env={**config.runtime_env, **installation(folder, config), "env_vars": config.settings},
    )


def run_settings(release: "Release", host: str) -> dict[str, str]:
    """The variables that every run of the release sees. They are the same for all runs."""
    return {
        "SYNAPSE_PLUGIN_RELEASE_CODE": release.name,
        "SYNAPSE_PLUGIN_RELEASE_CHECKSUM": release.checksum,
        "SYNAPSE_HOST": host,
    }


class PluginHost(Protocol):
    """Runs an *operation* of a release's entrypoint. The payload and the value are JSON.

    Both calls raise `PluginCallError` when the author's code raised, `PluginTimeoutError`, and
    `PluginHostUnavailableError` when the host cannot be reached, and `RunEndedError` when the run has ended
    for which they are made (`worker.plugins.run_end`). Safe for threads.
    """

    def call(self, release: "Release", request: ActionRequest, operation: str, payload: Any) -> Any:
        """Run a one-off operation: plan a deployment, submit it, check parameters."""

    def call_batch(self, release: "Release", request: ActionRequest, operation: str, payload: Any) -> Any:
        """Run a frequent operation: the release stays loaded between calls."""

    def warm_up(self, release: "Release", request: ActionRequest) -> None:
        """Load the release for `call_batch`, without waiting for it. Failures are left to the calls."""

    def pin(self, package: str) -> bool:
        """Keep this package from expiring, by its URI; false when it is gone. Called every few minutes."""

    def restore(self, package: str, release: "Release") -> bool:
        """Store a package that is gone again; false when the release has other content by now."""

    def close(self) -> None:
        """Release all resources."""
