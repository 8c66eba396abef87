"""What commands do with the Ray cluster: check the connection, roll an application back, remove one."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer

from worker.actions.serve_contents import ROLL_BACK, RollBack
from worker.cli.console import DEFAULT_REDIS_URL, RedisUrl, connect, fail, out
from worker.deploy.cluster import RayCluster
from worker.deploy.deployments import application_key, application_lock
from worker.plugins import PluginHostUnavailableError, RayDriverError
from worker.plugins.ray_driver import RayConnection, operations
from worker.plugins.ray_driver.connection import is_client_address
from worker.runs.locks import Locks

CONNECT_TIMEOUT_SECONDS: float = 20.0
"""A cluster that accepts the token answers within a few seconds; for Ray Client its head starts a process."""
LOOK_TIMEOUT_SECONDS: Final = 5.0
LOCK_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.5

Application = Annotated[
    str,
    typer.Argument(help="The application: the release, unless its author names it.", metavar="CODE@VERSION"),
]
RayAddress = Annotated[
    str | None, typer.Option("--ray-address", envvar="RAY_ADDRESS", help="Address of the Ray cluster.")
]
Timeout = Annotated[float, typer.Option(help="Seconds to wait until it runs.", min=1)]


def check_cluster(address: str) -> str:
    """Connect once; returns what to say of the connection.

    Raises `PluginHostUnavailableError`, which says what is wrong, when the cluster cannot be used.
    """
    connection = RayConnection(address)
    try:
        connection.connect(CONNECT_TIMEOUT_SECONDS)
        has_node = connection.call(operations.has_local_node, timeout=LOOK_TIMEOUT_SECONDS)
    except RayDriverError as error:
        raise PluginHostUnavailableError(f"the Ray cluster at RAY_ADDRESS was lost ({error})") from None
    finally:
        connection.close()
    found = connection.versions
    versions = f"Ray {found['ray']} and Python {found['python']} fit the cluster's"
    if not is_client_address(address):
        return f"connected through the cluster's node on this machine; {versions}"
    where = "a Ray node runs here, host:port may fit too" if has_node else "no Ray node runs here"
    return f"connected by Ray Client ({where}); {versions}"


def rollback(
    application: Application,
    timeout: Timeout = 600.0,
    ray_address: RayAddress = None,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
) -> None:
    """Let an application run again what it ran before its last update."""
    with _cluster(application, ray_address, redis_url) as cluster:
        found = cluster.roll_back(application)
        if found is RollBack.NO_APPLICATION:
            _fail_unknown(application, cluster)
        if found is RollBack.NOTHING_KEPT:
            fail(
                f"of {application} nothing is kept that ran before",
                hint="It was not updated since it was first deployed, or not by this version of the worker."
                " Deploy the release that it shall run.",
            )
        if found is RollBack.IS_THERE:
            out.print(f"{application} has already what it ran before its last update", highlight=False)
            return
        reason = _wait_until_running(application, cluster, timeout)
        if reason:
            cluster.put_back(application, ROLL_BACK)
            fail(f"{application} cannot run what it ran before, and keeps what it has: {reason}")
    out.print(f"{application} runs what it ran before its last update", highlight=False)


def undeploy(
    application: Application, ray_address: RayAddress = None, redis_url: RedisUrl = DEFAULT_REDIS_URL
) -> None:
    """Remove an application from Ray Serve, and what is kept of it."""
    with _cluster(application, ray_address, redis_url) as cluster:
        existed = cluster.state(application).exists
        cluster.undeploy(application)
    result = "was removed" if existed else "is not on Ray Serve: nothing to remove"
    out.print(f"{application} {result}", highlight=False)


@contextmanager
def _cluster(application: str, ray_address: str | None, redis_url: str) -> Iterator[RayCluster]:
    """The cluster, while no run deploys the application or removes it."""
    if not ray_address:
        fail("RAY_ADDRESS is not set", hint="Give the address of the Ray cluster, as the workers have it.")
    agent = os.environ.get("WORKER_AGENT")
    key = application_key(int(agent) if agent and agent.isdecimal() else None, application)
    connection = RayConnection(ray_address)
    with application_lock(Locks(connect(redis_url), LOCK_SECONDS), key) as is_locked:
        if not is_locked:
            fail(f"a run deploys or removes {application} at this moment", hint="Try again in a minute.")
        try:
            yield RayCluster(connection)
        except PluginHostUnavailableError as error:
            fail(str(error))
        finally:
            connection.close()


def _fail_unknown(application: str, cluster: RayCluster) -> None:
    names = ", ".join(sorted(cluster.live_applications() or {}))
    fail(
        f"there is no application {application} on Ray Serve",
        hint=(f"There are: {names}." if names else "There is none.") + " Deploy the release that shall run.",
    )


def _wait_until_running(application: str, cluster: RayCluster, timeout: float) -> str:
    """Wait; returns why it does not run, empty when it does."""
    deadline = time.monotonic() + timeout
    while True:
        state = cluster.state(application)
        if state.bucket == "running":
            return ""
        if state.bucket == "failed":
            return state.reason or str(state.status)
        if time.monotonic() > deadline:
            return f"it did not run within {timeout:g} s"
        time.sleep(POLL_SECONDS)
