"""What a direct `deploy()` takes from the config.yaml of the folder that it is called in."""

from pathlib import Path

from worker.actions.base import BaseAction
from worker.plugins.config import ReleaseConfig, parse_release_config
from worker.plugins.requests import ActionRequest, action_options
from worker.plugins.requirements import installation

ACTIONS = ("deployment", "inference")
"""The actions of config.yaml that are deployments, the first of which counts."""


def folder_request(action: BaseAction, folder: Path) -> ActionRequest | None:
    """Make the request that the worker would make of this folder's release, but for its package.

    Args:
        action: The action that is to deploy; its class is looked for among the entrypoints.
        folder: The folder, which is the working directory of the Ray job.

    Returns:
        The request, whose settings give way to those of the action's context. None without a config.yaml.

    Raises:
        ReleaseInvalidError: config.yaml or requirements.txt has mistakes; the message names every one.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    config = parse_release_config(path.read_bytes())
    name = f"{config.code}@{config.version}"
    declared = _action_of(type(action), config)
    serve_options, required_resources = action_options(config, declared) if declared else ({}, {})
    variables = config.runtime_env.get("env_vars") or {}
    return ActionRequest(
        release=name,
        action=declared or ACTIONS[0],
        entrypoint=f"{type(action).__module__}.{type(action).__name__}",
        env={**config.env, "SYNAPSE_PLUGIN_RELEASE_CODE": name, **action.ctx.env},
        serve_options=serve_options,
        required_resources=required_resources,
        # The folder itself is the job's working directory, which the replicas inherit.
        runtime_env={
            **config.runtime_env,
            **installation(folder, config),
            "env_vars": {**variables, **config.env},
        },
    )


def _action_of(action: type[BaseAction], config: ReleaseConfig) -> str | None:
    """The name of the action whose entrypoint is this class, else of the release's deployment."""
    own = f"{action.__module__}.{action.__name__}"
    named = [name for name, declared in config.actions.items() if declared.entrypoint == own]
    return next((name for name in [*named, *ACTIONS] if name in config.actions), None)
