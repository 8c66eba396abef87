"""What applications ran before they were updated, which can be deployed again.

A content is what Serve's controller was given for each deployment: code, options and environment. It is kept
in the cluster's control store, where Serve has the same for itself: an environment may hold secrets of the
release, which do not belong in Redis, and the release may have other files by now.
"""

import base64
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from shared.messages import JsonObject
from worker.actions.replica_needs import ReplicaNeeds, surge_percent
from worker.actions.serve_state import forget_lost_controller, load_serve

NAMESPACE = b"synapse"
KEY_PREFIX = b"application-contents:"
MAX_CONTENTS = 2
"""Of an application: what ran before, and what ran before that, in case the update in between fails."""
ROLL_BACK = "roll back"
"""In place of a plan's digest, for what a roll back replaces. It is put back if that fails, else dropped."""
RAN_STATUSES = ("RUNNING", "UNHEALTHY")
"""Of an application whose present content has run; while it is updated, an older one may be running."""


@dataclass(frozen=True)
class Content:
    """What ran under an application's name, and the digest of the plan that replaced it."""

    replaced_by: str
    deployments: list[str]
    """Base64 of the messages `DeploymentArgs` of Serve's controller."""


class RollBack(StrEnum):
    """What a roll back has found."""

    SUBMITTED = "submitted"
    IS_THERE = "is there"
    """What ran before is what the application has."""
    NOTHING_KEPT = "nothing kept"
    NO_APPLICATION = "no application"


def keep_content(name: str, running: Mapping[str, Any], replaced_by: str) -> None:
    """Keep what an application runs, because it is about to be replaced.

    Args:
        name: The application's name.
        running: Its part of `serve_details`.
        replaced_by: The digest of the plan that replaces it.
    """
    if running["status"] not in RAN_STATUSES:
        return
    current = [_encode(each) for each in _current_deployments(name, running)]
    others = [each for each in _rollable(name) if _versions(each.deployments) != _versions(current)]
    _write(name, [Content(replaced_by, current), *others][:MAX_CONTENTS])


def put_back(name: str, running: Mapping[str, Any] | None, failed: str) -> bool:
    """Deploy what an application ran before an update that has failed. Its replicas that still serve stay.

    Args:
        name: The application's name.
        running: Its part of `serve_details`; None when Serve does not know it.
        failed: The digest of the plan that has failed, and that the application has now; or `ROLL_BACK`.

    Returns:
        Whether there was something to put back. Safe to repeat.
    """
    kept = _read(name)
    if running is None or not kept or kept[0].replaced_by != failed:
        return False
    _deploy(name, kept[0].deployments)
    _write(name, kept[1:])
    return True


def roll_back(name: str, running: Mapping[str, Any] | None) -> RollBack:
    """Deploy what an application ran before its last update.

    Args:
        name: The application's name.
        running: Its part of `serve_details`; None when Serve does not know it.

    Returns:
        What was found. Safe to repeat: what was put back stays what ran before.
    """
    if running is None or running["status"] == "DELETING":
        return RollBack.NO_APPLICATION
    kept = _rollable(name)
    if not kept:
        return RollBack.NOTHING_KEPT
    current = [_encode(each) for each in _current_deployments(name, running)]
    if _versions(current) == _versions(kept[0].deployments):
        return RollBack.IS_THERE
    _write(name, [Content(ROLL_BACK, current), *kept])
    _deploy(name, kept[0].deployments)
    return RollBack.SUBMITTED


def forget_contents(name: str) -> None:
    """Keep nothing of an application any longer.

    Args:
        name: The application's name.
    """
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(_key(name), namespace=NAMESPACE)


def kept_packages() -> dict[str, list[str]]:
    """List the packages that the kept contents need.

    Returns:
        The URIs by application name.
    """
    from ray.experimental import internal_kv

    keys = internal_kv._internal_kv_list(KEY_PREFIX, namespace=NAMESPACE)
    names = [key.removeprefix(KEY_PREFIX).decode() for key in keys]
    return {name: sorted(set(_packages_of(_read(name)))) for name in names}


def _packages_of(contents: Sequence[Content]) -> Iterator[str]:
    for content in contents:
        for args in _decode(content.deployments):
            environment = _actor_options(args).get("runtime_env") or {}
            uris = [environment.get("working_dir"), *(environment.get("py_modules") or [])]
            yield from (uri for uri in uris if isinstance(uri, str) and "://" in uri)


def _current_deployments(name: str, running: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments with which the controller would deploy the application as it is."""
    import ray
    from ray.serve.generated import serve_pb2

    controller = _client()._controller
    ingress = ray.get(controller.get_ingress_deployment_name.remote(name))
    for deployment in running["deployments"]:
        found = serve_pb2.DeploymentRoute.FromString(
            ray.get(controller.get_deployment_info.remote(deployment, name))
        )
        info = found.deployment_info
        info.deployment_config.version = info.version
        args = serve_pb2.DeploymentArgs(
            deployment_name=deployment,
            deployment_config=info.deployment_config.SerializeToString(),
            replica_config=info.replica_config.SerializeToString(),
            deployer_job_id=ray.get_runtime_context().get_job_id(),
            ingress=deployment == ingress,
        )
        if args.ingress and running.get("route_prefix"):
            args.route_prefix = running["route_prefix"]
        yield args


def _deploy(name: str, deployments: Sequence[str]) -> None:
    import ray
    from ray.serve.generated import serve_pb2

    decoded = list(_decode(deployments))
    surge = surge_percent([_needs(args) for args in decoded])
    for args in decoded:
        config = serve_pb2.DeploymentConfig.FromString(args.deployment_config)
        config.max_surge_percent = surge
        args.deployment_config = config.SerializeToString()
    application = serve_pb2.ApplicationArgs(external_scaler_enabled=False)
    ray.get(
        _client()._controller.deploy_applications.remote(
            {name: [args.SerializeToString() for args in decoded]}, {name: application.SerializeToString()}
        )
    )


def _needs(args: Any) -> ReplicaNeeds:
    from ray.serve.generated import serve_pb2

    config = serve_pb2.DeploymentConfig.FromString(args.deployment_config)
    scaling = config.autoscaling_config
    has_scaling = config.HasField("autoscaling_config")
    count = (scaling.initial_replicas or scaling.min_replicas) if has_scaling else config.num_replicas
    return ReplicaNeeds.of(_actor_options(args), int(count))


def _actor_options(args: Any) -> JsonObject:
    from ray.serve.generated import serve_pb2

    replica = serve_pb2.ReplicaConfig.FromString(args.replica_config)
    return dict(json.loads(replica.ray_actor_options or b"{}"))


def _versions(deployments: Sequence[str]) -> dict[str, str]:
    """By the deployment's name, Serve's own version of it, which is new with every submission."""
    from ray.serve.generated import serve_pb2

    return {
        args.deployment_name: serve_pb2.DeploymentConfig.FromString(args.deployment_config).version
        for args in _decode(deployments)
    }


def _encode(args: Any) -> str:
    return base64.b64encode(args.SerializeToString()).decode()


def _decode(deployments: Sequence[str]) -> Iterator[Any]:
    from ray.serve.generated import serve_pb2

    return (serve_pb2.DeploymentArgs.FromString(base64.b64decode(each)) for each in deployments)


def _read(name: str) -> list[Content]:
    from ray.experimental import internal_kv

    stored = internal_kv._internal_kv_get(_key(name), namespace=NAMESPACE)
    contents: list[Content] = []
    with contextlib.suppress(ValueError, TypeError):  # of another version of this project
        contents += [Content(**each) for each in json.loads(stored or "[]")]
    return contents


def _rollable(name: str) -> list[Content]:
    return [content for content in _read(name) if content.replaced_by != ROLL_BACK]


def _write(name: str, contents: Sequence[Content]) -> None:
    from ray.experimental import internal_kv

    text = json.dumps([asdict(content) for content in contents])
    internal_kv._internal_kv_put(_key(name), text.encode(), overwrite=True, namespace=NAMESPACE)


def _key(name: str) -> bytes:
    return KEY_PREFIX + name.encode()


def _client() -> Any:
    load_serve()
    from ray.serve.context import _get_global_client

    forget_lost_controller()
    return _get_global_client()
