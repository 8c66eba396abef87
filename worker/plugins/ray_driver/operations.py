"""What the worker calls in the driver process. Only here, in that process, is Ray's library loaded.

Calls and actors are known to the worker by ids, because their handles mean something to this process alone.
An id is unique across processes: a call of one must not be taken for a call of the next.
"""

import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from shared.messages import JsonObject

NAMESPACE: Final = "synapse"
CLIENT_SCHEME: Final = "ray://"

_loading_serve = threading.Lock()
_calls: dict[str, Any] = {}
_actors: dict[str, Any] = {}


class CallEnd(StrEnum):
    """How a call of plugin code ended."""

    REPLY = "reply"
    ACTOR_DIED = "actor_died"
    PROCESS_DIED = "process_died"
    RUNTIME_ENV_FAILED = "runtime_env_failed"
    TASK_FAILED = "task_failed"


@dataclass(frozen=True)
class CallResult:
    """The end of a call, with its reply or the error's class and text."""

    end: CallEnd
    reply: str = ""
    error_type: str = ""
    text: str = ""


class NoRayNodeError(Exception):
    """The address is that of a cluster's control store, but no node of it runs on this machine."""


def load_ray() -> None:
    """Import Ray, which takes a second of computing."""
    import ray  # noqa: F401


def load_serve() -> None:
    """Import Serve, which takes as long as Ray, and is needed only after a first call of plugin code.

    One thread at a time: of two that import it at once, one may find it half made (ImportError).
    """
    with _loading_serve:
        from ray import serve  # noqa: F401


def connect(address: str) -> JsonObject:
    """Connect to the cluster at `address`; returns the versions of Ray and Python that it has, too."""
    import ray

    if not address.startswith(CLIENT_SCHEME):
        _require_local_node()
    with tempfile.TemporaryDirectory(prefix="synapse-empty-") as empty:
        # Without a working_dir Ray adds the driver's folder to the path of every process of the cluster,
        # where a package `plugin` in it would hide the releases' packages.
        ray.init(
            address,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"working_dir": empty},
        )
    return own_versions()


def own_versions() -> JsonObject:
    """The versions that Ray compares with the cluster's when it connects."""
    from ray._private.utils import compute_version_info

    ray_version, python_version = compute_version_info()
    return {"ray": ray_version, "python": python_version}


def has_local_node() -> bool:
    """Whether a node of any Ray cluster runs on this machine, as far as this process can see."""
    from ray._private.services import find_node_ids

    return bool(find_node_ids())


def _require_local_node() -> None:
    # Ray itself looks for one for a minute.
    if not has_local_node():
        raise NoRayNodeError


def is_usable() -> bool:
    """Whether the cluster answers, and the node through which this process is connected is alive."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return any(node["Alive"] and node["NodeID"] == own for node in ray.nodes())


def keep_package(uri: str, seconds: float) -> bool:
    """Let the cluster keep the package for ten more minutes; false when it is not there.

    Raises `GetTimeoutError` after `seconds`: a task waits for a process, which a busy cluster starts late.
    """

    def keep() -> bool:
        from ray._private.runtime_env import packaging

        packaging.pin_runtime_env_uri(uri)
        return bool(packaging.package_exists(uri))

    return bool(_run_beside_control_store(seconds, keep))


def upload_package(uri: str, path: str, seconds: float) -> None:
    """Store the package in the cluster's control store, and keep it for ten minutes; see `keep_package`.

    Ray takes it whole: this process alone has it in memory, for as long as that takes.
    """

    def upload(content: bytes) -> None:
        from ray._private.runtime_env import packaging

        packaging.upload_package_to_gcs(uri, content)
        packaging.pin_runtime_env_uri(uri)

    _run_beside_control_store(seconds, upload, Path(path).read_bytes())


def _run_beside_control_store(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function, by Ray Client in a task on the cluster: its server cannot pin packages.

    The functions are nested ones, which travel by value: an older version on the nodes need not know them.
    """
    import ray

    if not ray.util.client.ray.is_connected():
        return function(*arguments)
    return ray.get(ray.remote(num_cpus=0)(function).remote(*arguments), timeout=seconds)


def start_task(runtime_env: JsonObject, request: str, operation: str, payload: str) -> str:
    """Start a one-off call in a task of zero CPUs that Ray never retries; returns the call's id."""
    task = _remote_task().options(runtime_env=runtime_env)
    return _add(_calls, task.remote(request, operation, payload))


def start_actor(runtime_env: JsonObject) -> str:
    """Start an actor for frequent calls; returns its id."""
    options = {"runtime_env": runtime_env, "num_cpus": 0, "max_restarts": 0}
    return _add(_actors, _remote_actor().options(**options).remote())


def await_actor(actor: str) -> str:
    """Start a call that ends when the actor's process has started; returns the call's id."""
    return _add(_calls, _actors[actor].__ray_ready__.remote())


def call_actor(
    call: str, actor: str, request: str, operation: str, payload: str, seconds: float
) -> JsonObject | None:
    """Start a call in an actor, by an id of the worker's, and `wait_for_end`.

    Both at once, because most calls take a millisecond, and each exchange with this process takes longer.
    """
    _calls[call] = _actors[actor].run.remote(request, operation, payload)
    return wait_for_end(call, seconds)


def wait_for_end(call: str, seconds: float) -> JsonObject | None:
    """The fields of the `CallResult`; None when the call still runs after `seconds`."""
    import ray

    ref = _calls[call]
    if not ray.wait([ref], timeout=seconds)[0]:
        return None
    _calls.pop(call, None)
    return asdict(_result(ref))


def _result(ref: Any) -> CallResult:
    import ray
    from ray import exceptions

    try:
        return CallResult(CallEnd.REPLY, reply=str(ray.get(ref)))
    except exceptions.RuntimeEnvSetupError as error:
        return CallResult(CallEnd.RUNTIME_ENV_FAILED, error_type="RuntimeEnvSetupError", text=str(error))
    except exceptions.RayActorError as error:
        return CallResult(CallEnd.ACTOR_DIED, error_type=type(error).__name__)
    except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError) as error:
        return CallResult(CallEnd.PROCESS_DIED, error_type=type(error).__name__)
    except exceptions.RayTaskError as error:
        return CallResult(CallEnd.TASK_FAILED, error_type="RayTaskError", text=str(error))
    # All others, of many classes, mean that the connection is lost.


def cancel_call(call: str) -> None:
    """End the process of a task."""
    import ray

    ref = _calls.pop(call, None)
    if ref is not None:
        ray.cancel(ref, force=True)


def kill_actor(actor: str, call: str | None = None) -> None:
    """End the actor's process, and forget the call that it ran."""
    import ray

    _calls.pop(call or "", None)
    handle = _actors.pop(actor, None)
    if handle is not None:
        ray.kill(handle)


def drop_actors(actors: list[str]) -> None:
    """Forget these actors; each ends after its last call."""
    for actor in actors:
        _actors.pop(actor, None)


def _add(handles: dict[str, Any], handle: Any) -> str:
    id = uuid4().hex
    handles[id] = handle
    return id


@lru_cache(maxsize=1)
def _remote_task() -> Any:
    import ray

    from worker.plugins.runner import run_in_ray

    return ray.remote(num_cpus=0, max_retries=0)(run_in_ray)


@lru_cache(maxsize=1)
def _remote_actor() -> Any:
    import ray

    from worker.plugins.runner import BatchActor

    return ray.remote(BatchActor)
