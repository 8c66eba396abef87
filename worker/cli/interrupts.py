"""Ctrl-C, SIGTERM and SIGHUP: for commands that clean up before they end, and while modules are imported."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP comes when the terminal is closed."""


@contextmanager
def interrupt_once() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does; later signals are ignored, to not interrupt the clean-up.

    So does SIGHUP, unless it is ignored already, as `nohup` has it.
    """

    def interrupt(*_: object) -> NoReturn:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in SIGNALS if number is not signal.SIGHUP or not _is_ignored(number)]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Ctrl-C in the block, which imports modules, ends the process with the usual code and no traceback."""
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
