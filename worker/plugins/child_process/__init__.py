"""Child processes of the worker that run the code of releases, one call at a time each."""

from worker.plugins.child_process.process import PluginProcess

__all__ = ["PluginProcess"]
