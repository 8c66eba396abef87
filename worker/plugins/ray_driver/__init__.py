"""Ray's library in a child process of the worker: a call that hangs in it is ended by killing the process."""

from worker.plugins.ray_driver.connection import RayConnection
from worker.plugins.ray_driver.process import RayDriver

__all__ = ["RayConnection", "RayDriver"]
