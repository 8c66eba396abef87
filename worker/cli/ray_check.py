"""Checks which form of RAY_ADDRESS fits on this machine, and whether the cluster accepts a driver."""

from typing import Final

from worker.plugins import PluginHostUnavailableError, RayDriverError
from worker.plugins.ray_driver import RayConnection, operations
from worker.plugins.ray_driver.connection import is_client_address

CONNECT_TIMEOUT_SECONDS: float = 20.0
"""A cluster that accepts the token answers within a few seconds; for Ray Client its head starts a process."""
LOOK_TIMEOUT_SECONDS: Final = 5.0


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
