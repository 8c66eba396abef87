"""synapse-worker: the command for people."""

from worker.cli.main import main

__all__ = ["main"]
