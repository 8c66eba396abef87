"""Signals that end a command which cleans up."""

import os
import signal
from collections.abc import Iterator

import pytest

from worker.cli.interrupts import SIGNALS, interrupt_once


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_block_as_ctrl_c_does(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)

    with pytest.raises(KeyboardInterrupt), interrupt_once():
        os.kill(os.getpid(), number)


def test_a_second_signal_does_not_interrupt_the_clean_up() -> None:
    cleaned_up = []

    def work_and_clean_up() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            cleaned_up.append(True)

    with pytest.raises(KeyboardInterrupt), interrupt_once():
        work_and_clean_up()

    assert cleaned_up


def test_a_closed_terminal_that_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with interrupt_once():
        os.kill(os.getpid(), signal.SIGHUP)

    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
