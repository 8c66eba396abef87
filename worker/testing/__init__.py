"""Fakes of what the worker talks to, for tests of workflows and plugins: a backend, an agent, a plugin host.

They hold their state in memory, answer as the platform's API does, and fail on demand.
"""

from worker.testing.agent import FakeAgent
from worker.testing.backend import FakeBackend, image_and_label
from worker.testing.faults import Faults
from worker.testing.plugin_host import FakePluginHost
from worker.testing.ray_jobs import FakeJobs
from worker.testing.serve import FakeServe

__all__ = ["FakeAgent", "FakeBackend", "FakeJobs", "FakePluginHost", "FakeServe", "Faults", "image_and_label"]
