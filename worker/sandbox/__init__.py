"""Everything that a worker needs on one machine, without an account: a Redis, a Ray, a backend and an agent.

All of it listens on this machine's loopback and ends with the process that started it.
"""

from worker.sandbox.processes import Process, SandboxError, wait_for
from worker.sandbox.sandbox import Sandbox

__all__ = ["Process", "Sandbox", "SandboxError", "wait_for"]
