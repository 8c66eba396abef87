"""synapse-worker: the command for people."""

from worker.cli.interrupts import quiet

with quiet():
    from worker.cli.main import main

__all__ = ["main"]
