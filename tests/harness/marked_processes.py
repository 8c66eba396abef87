"""Processes that have a mark in their environment, which all descendants have, including detached daemons."""

import contextlib
import os
from uuid import uuid4

import psutil

NAME = "TEST_MARK"


def marked_environment() -> tuple[str, dict[str, str]]:
    """A new mark, and an environment with it."""
    mark = uuid4().hex
    return mark, {**os.environ, "COLUMNS": "200", NAME: mark}


def marked_processes(mark: str) -> list[str]:
    """The command lines of the processes that run with this mark."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if process.environ().get(NAME) == mark:
                found.append(" ".join(process.info["cmdline"] or []))
    return found
