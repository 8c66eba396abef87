"""`synapse-worker`, the command line interface."""

from worker.cli.interrupts import exit_on_interrupt

with exit_on_interrupt():
    from worker.cli.main import main

__all__ = ["main"]
